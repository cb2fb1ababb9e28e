from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepress.compress.quantize import Statistics, calibrate, canonical_module, render
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import RULES, rules_for

from .nets import NETS, outputs_of, program_of, samples_of


def exported(module: nn.Module, *example: torch.Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(module.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example))


def test_statistics_do_not_depend_on_how_samples_are_batched() -> None:
    (images,) = samples_of("residual", 12)
    whole = calibrate(program_of("residual"), [(images,)])
    parts = calibrate(program_of("residual"), [(images[:5],), (images[5:].numpy(),)])
    assert (whole.samples, parts.samples) == (12, 12)
    name = "conv2d"
    assert whole.histograms[name].total == parts.histograms[name].total
    assert whole.histograms["x"].counts.tolist() == parts.histograms["x"].counts.tolist()
    assert whole.range_of(name, False) == pytest.approx(parts.range_of(name, False), rel=1e-2)


@pytest.mark.parametrize("name", NETS)
def test_values_are_counted_where_a_runtime_rounds_them_and_ranges_are_the_same(name: str) -> None:
    """A tensor that none of them rounds has extremes and no counts: nothing that is shipped may depend on them."""
    program, samples = program_of(name), samples_of(name, 12)
    every = calibrate(program, [samples])
    for runtime in RULES.builtins:
        some = calibrate(program, [samples], runtimes=[rules_for(runtime)])
        counted = {name for name, held in some.histograms.items() if held.total}
        assert counted < {name for name, held in every.histograms.items() if held.total}
        assert all(
            (held.minimum, held.maximum) == (every.histograms[n].minimum, every.histograms[n].maximum)
            for n, held in some.histograms.items()
        )
        for kind in ("static", "static-matmul"):
            scheme = Scheme("int8", kind)
            whole, part = (outputs_of(render(program, s, rules_for(runtime), scheme).module, samples) for s in (every, some))
            assert all(torch.equal(first, second) for first, second in zip(whole, part, strict=True)), runtime


def test_a_tensor_whose_values_are_not_counted_has_the_range_of_its_extremes() -> None:
    (images,) = samples_of("residual", 12)
    statistics = calibrate(program_of("residual"), [(images[:5],), (images[5:],)], runtimes=[])
    held = statistics.histograms["x"]
    assert held.total == 0 and held.largest == float(images.abs().max())
    assert statistics.range_of("x", False) == (float(images.min()), float(images.max()))


def test_the_same_samples_give_the_same_file_and_the_file_reads_back(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path in paths[:2]:
        calibrate(program_of("sentence-sdpa"), [samples_of("sentence-sdpa", 6)]).save(path)
    loaded = Statistics.load(paths[0])
    loaded.save(paths[2])
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()
    assert loaded.observer == "auto" and loaded.samples == 6


def test_size_does_not_grow_with_samples(tmp_path: Path) -> None:
    sizes = []
    for count in (2, 40):
        calibrate(program_of("shared"), [samples_of("shared", count)]).save(tmp_path / "s")
        sizes.append((tmp_path / "s").stat().st_size)
    assert abs(sizes[0] - sizes[1]) <= 8


def test_node_names_are_the_same_every_time_and_the_program_is_left_alone() -> None:
    program = program_of("sentence-sdpa")
    first, second = canonical_module(program), canonical_module(program)
    assert [node.name for node in first.graph.nodes] == [node.name for node in second.graph.nodes]
    inputs = samples_of("sentence-sdpa", 4)
    with torch.no_grad():
        expected, got = program.module()(*inputs), second(*inputs)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_an_activation_that_is_not_a_number_names_its_layer() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            nn.init.constant_(self.body[1].weight, float("nan"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    with pytest.raises(QuantizationError, match=r"'body\.1'.*NaN"):
        calibrate(exported(Broken(), torch.randn(2, 4)), [(np.ones((3, 4), dtype=np.float32),)])


class NearestToken(nn.Module):
    """Distances of tokens to prototypes, the nearest real token counting: padding is infinitely far."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), nn.Linear(5, 3)
        self.prototypes = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, 6) and 1 for tokens, 0 for padding -> (batch, 3)."""
        distance = (self.body(x)[:, :, None] - self.prototypes).square().sum(-1)
        return self.head(torch.exp(-distance.masked_fill(mask[..., None] == 0, float("inf")).amin(1)))


class MeanOfSome(nn.Module):
    """Means over the tokens that a mask keeps; 0 of none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.last = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, 6) and 1 for tokens, 0 for padding -> (batch, 4)."""
        count = mask.sum(1, keepdim=True)
        return self.body(torch.where(count > 0, self.last((x * mask[..., None]).sum(1) / count), 0.0))


@pytest.mark.parametrize("net", [NearestToken, MeanOfSome])
@pytest.mark.parametrize("observer", ["auto", "minmax"])
def test_what_is_not_finite_between_layers_stays_float(net: type[nn.Module], observer: str) -> None:
    """A mask leaves it out again: the answers are finite, and so must those of the integers be."""
    torch.manual_seed(0)
    model, x, mask = net().eval(), torch.randn(16, 10, 6), torch.ones(16, 10)
    mask[:, 7:], mask[3] = 0, torch.zeros(10) if net is MeanOfSome else 1
    program = exported(model, x[:2], mask[:2])
    statistics = calibrate(program, [(x, mask)], observer)
    assert all(np.isfinite(channels).all() for channels in statistics.channels.values())
    exact = model(x, mask)
    for runtime in RULES.builtins:
        got = render(program, statistics, rules_for(runtime), Scheme("int8", "static")).module(x, mask)
        assert exact.isfinite().all() and (got - exact).square().mean() < 0.01 * exact.var(), runtime


def test_no_samples_and_unknown_observers_are_errors() -> None:
    with pytest.raises(QuantizationError, match="no samples"):
        calibrate(program_of("shared"), [])
    with pytest.raises(QuantizationError, match="'best'"):
        calibrate(program_of("shared"), [samples_of("shared", 2)], observer="best")


def test_a_file_that_is_not_statistics_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(QuantizationError, match="holds no calibration statistics"):
        Statistics.load(tmp_path / "x")
    with pytest.raises(QuantizationError, match="holds no calibration statistics"):
        Statistics.load(tmp_path / "missing")
