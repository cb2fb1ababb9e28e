import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.output_weights import CHANNEL_BINS, SAMPLES, _mean, scaled_histogram
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for


class Ignored(nn.Module):
    """Of 16 hidden features, half are fifty times larger than the others, and the output hardly reads them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.first.weight[8:] *= 50
            self.second.weight[:, 8:] *= 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def exported(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=512)
    return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))


def noise(program: torch.export.ExportedProgram, observer: str, seen: torch.Tensor, apart: torch.Tensor) -> float:
    rendered = render(program, calibrate(program, [(seen,)], observer), rules_for("litert"), Scheme("int8", "static"))
    with torch.no_grad():
        exact = program.module()(apart)
        return float((rendered.module(apart) - exact).square().mean() / exact.var())


def test_values_that_the_outputs_ignore_are_cut_off() -> None:
    images = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    program = exported(Ignored(), images[:2])
    assert noise(program, "auto", images[:64], images[64:]) < noise(program, "histogram", images[:64], images[64:]) / 4


def test_a_value_weighs_the_square_of_its_gradient() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x).sum(dim=1, keepdim=True)

    rows = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(2))
    weights = calibrate(exported(Product(), rows[:2]), [(rows,)], "auto").weights
    assert weights is not None
    size = torch.tanh(rows).sum(dim=1).square().mean().sqrt()  # one output: a random sign changes nothing
    expected = ((1 - torch.tanh(rows).square()) / size).square()
    assert weights.tensors["x"].total == pytest.approx(float(expected.sum()), rel=0.02)
    assert weights.tensors["tanh"].total == pytest.approx(rows.numel() / float(size) ** 2, rel=1e-3)


def test_what_has_no_gradient_gets_the_range_of_the_smallest_squared_error() -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sign(self.body(x))

    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    program = exported(Signs(), rows[:2])
    weighted, plain = (calibrate(program, [(rows,)], observer) for observer in ("auto", "histogram"))
    assert weighted.range_of("x", False) == plain.range_of("x", False)
    assert weighted.scaled_range("x", np.full(6, 2.0), False) == plain.scaled_range("x", np.full(6, 2.0), False)


def test_an_operator_without_a_derivative_costs_the_weights_alone() -> None:
    @torch.library.custom_op("edgepress_test::shifted", mutates_args=())
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    shifted.register_fake(torch.empty_like)

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return shifted(torch.relu(x))

    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(4))
    with pytest.warns(UserWarning, match="as `observer: histogram` does.*shifted"):
        statistics = calibrate(exported(Model(), rows[:2]), [(rows,)], "auto")
    assert statistics.weights is not None and not statistics.weights.tensors
    assert statistics.range_of("relu", False)[1] > 0


def test_a_channel_that_the_outputs_ignore_is_cut_off_after_scaling_too() -> None:
    torch.manual_seed(0)
    layer, rows = nn.Linear(8, 4), torch.randn(400, 8)
    rows[:, 0] *= 100
    with torch.no_grad():
        layer.weight[:, 0] = 0
    weighted, plain = (calibrate(exported(layer, rows[:2]), [(rows,)], observer) for observer in ("auto", "histogram"))
    scale = np.full(8, 2.0)
    assert plain.scaled_range("input_1", scale, False)[1] > 100 and weighted.scaled_range("input_1", scale, False)[1] < 2.5


@given(st.data(), st.integers(1, 4), st.integers(1, 30))
def test_averaging_weights_over_neighbours_keeps_their_sum(data: st.DataObject, rows: int, bins: int) -> None:
    counts = data.draw(arrays.arrays(np.float64, (rows, bins), elements=st.integers(0, 40).map(float)))
    weights = data.draw(arrays.arrays(np.float64, (rows, bins), elements=st.floats(0, 8))) * counts
    mean = _mean(weights, counts)
    np.testing.assert_allclose((mean * counts).sum(axis=1), weights.sum(axis=1), rtol=1e-9, atol=1e-9)
    assert (mean <= 8 * (1 + 1e-9)).all()


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_dividing_channels_keeps_what_their_errors_do_to_the_outputs(data: st.DataObject, channels: int) -> None:
    sizes = arrays.arrays(np.float64, channels, elements=st.floats(0.125, 64))
    largest, scale = data.draw(sizes), data.draw(sizes)
    table = data.draw(arrays.arrays(np.float32, (channels, 2 * CHANNEL_BINS), elements=st.floats(0, 8, width=32)))
    columns = np.stack([-largest, largest, largest**2])
    found = scaled_histogram(table, columns, scale)
    assert math.isclose(found.total, float((table * np.square(scale)[:, None]).sum()), rel_tol=1e-5, abs_tol=1e-9)
    assert (found.minimum, found.maximum) == (-(largest / scale).max(), (largest / scale).max())
    widest = found.counts.reshape(2, -1).nonzero()[0]
    assert len(widest) == 0 or found.width * len(found.counts) / 2 >= found.maximum


class Routed(nn.Module):
    """Counts how many of its features are positive, as mixtures of experts count their tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        counts = torch.cumsum(torch.histc(hidden, bins=8, min=-4, max=4), 0, dtype=torch.int32)
        return self.last(hidden.relu()) + counts[-1].float() * 0.0


def test_integers_have_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    statistics = calibrate(exported(Routed().eval(), x), [(x,)])
    assert statistics.weights is not None and "relu" in statistics.weights.tensors
