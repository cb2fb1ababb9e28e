"""A model that was traced with a fixed batch is quantized on as many samples as one that takes any batch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.quantize import Int4Options, Statistics, calibrate, canonical_module, quantize_int4
from edgepress.compress.quantize.batches import fitting, only_batch
from edgepress.compress.quantize.equalize import equalize
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.compress.quantize.sensitivity import sensitivities
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import RULES, rules_for

STATIC = Scheme("int8", "static")
RULE = rules_for("onnxruntime")


class Net(nn.Module):
    """Its batch is a number in the graph, or it is not; one layer has tokens first."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3, stride=2)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(32, 32)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 7, 7) -> (batch, 32)."""
        count = int(x.shape[0]) if self.fixed else x.shape[0]
        tokens = torch.relu(self.down(torch.relu(self.conv(x)))).flatten(2).permute(2, 0, 1)
        return self.head(self.mix(tokens).permute(1, 0, 2).reshape(count, -1))


@cache
def program(batch: int | None) -> ExportedProgram:
    torch.manual_seed(0)
    net = Net(batch is not None).eval()
    axes = None if batch else ({0: Dim("batch", min=1)},)
    return torch.export.export(net, (torch.randn(batch or 2, 3, 7, 7),), dynamic_shapes=axes)


def samples(count: int = 24) -> list[Tensor]:
    return [torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(1))]


@cache
def calibrated(batch: int | None) -> Statistics:
    return calibrate(program(batch), [samples()])


def outputs(module: nn.Module, batch: int | None) -> Tensor:
    (x,) = samples()
    with torch.no_grad():
        return torch.cat([module(piece) for piece in x.split(batch or len(x))])


def test_samples_are_joined_and_cut_to_the_only_batch_and_the_last_one_is_filled_up() -> None:
    module = canonical_module(program(4))
    assert only_batch(module) == 4 and only_batch(canonical_module(program(None))) is None
    images = samples(10)[0]
    found = list(fitting(module, [[images[:3]], [images[3:9].numpy()], [images[9:]]]))
    assert [len(batch[0]) for batch in found] == [4, 4, 4]
    assert torch.equal(torch.cat([batch[0] for batch in found]), images[[*range(10), 9, 9]])


@pytest.mark.parametrize("batch", [1, 4])
def test_calibration_sees_what_it_sees_of_a_dynamic_batch(batch: int) -> None:
    fixed, dynamic = calibrated(batch), calibrated(None)
    assert fixed.samples == 24 and fixed.histograms["conv2d"].total == dynamic.histograms["conv2d"].total
    assert fixed.weights is not None and dynamic.weights is not None and fixed.weights.tensors.keys() == dynamic.weights.tensors.keys()
    for name in ("x", "conv2d", "relu_1"):
        assert fixed.range_of(name, False) == pytest.approx(dynamic.range_of(name, False), rel=0.05)


@pytest.mark.parametrize("batch", [1, 4])
def test_algorithms_refine_the_same_layers_on_all_samples(batch: int) -> None:
    found = {
        size: refine(program(size), calibrated(size), RULE, STATIC, [samples()], refiners_of(["gptq", "bias-correction"], 0))
        for size in (None, batch)
    }
    assert found[batch].corrections.keys() == found[None].corrections.keys()
    for name, values in found[None].corrections.items():
        if name.endswith("bias"):
            np.testing.assert_allclose(found[batch].corrections[name], values, atol=5e-3)


def test_layers_cost_what_they_cost_with_a_dynamic_batch() -> None:
    found = {size: sensitivities(program(size), calibrated(size), RULE, STATIC, [samples()]) for size in (None, 1)}
    assert [layer.node for layer in found[1]] == [layer.node for layer in found[None]]
    for fixed, dynamic in zip(found[1], found[None], strict=True):
        assert fixed.noise == pytest.approx(dynamic.noise, rel=0.1)


def test_equalization_measures_chains_through_a_flattening_to_the_fixed_batch() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(150, 4)
            with torch.no_grad():
                self.conv.weight[0] *= 50

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)).view(int(x.shape[0]), -1))

    torch.manual_seed(0)
    chain = Chain().eval()
    result = equalize(torch.export.export(chain, (samples(1)[0],)), [samples()], [rules_for(name) for name in RULES.builtins])
    assert result.pairs == (("conv", "head"),)
    with torch.no_grad():
        torch.testing.assert_close(result.program.module()(samples(1)[0]), chain(samples(1)[0]), rtol=1e-3, atol=1e-4)


def test_weights_of_four_bits_are_rounded_by_the_moments_of_all_samples() -> None:
    assert RULE.int4 is not None
    options = Int4Options(RULE.int4, group=16)
    fixed, dynamic = (quantize_int4(program(size), options, lambda: [samples()]) for size in (1, None))
    assert fixed.groups == dynamic.groups
    np.testing.assert_allclose(outputs(fixed.program.module(), 1), outputs(dynamic.program.module(), None), atol=1e-3)
