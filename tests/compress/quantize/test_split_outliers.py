from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgepress.compress.quantize import Statistics, calibrate, canonical_module, render
from edgepress.compress.quantize.graph import constant, op_name
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.compress.quantize.saturation import Guard, Pairs
from edgepress.compress.quantize.split_outliers import _chosen, _round_apart, spread_outliers
from edgepress.compress.quantize.weight_grid import Rounding
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for

MATMUL = Scheme("int8", "static-matmul")
GUARDS = [Guard(Pairs(1, flattened=True)), Guard(None)]
WIDE, PLAIN = [(80, 32), (32, 80)], [(64, 32), (32, 64)]


class FeedForward(nn.Module):
    """At one sample of 16 one neuron answers 25 where the others stay below 3, and weighs 40 times more for one output than they do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 64), nn.Linear(64, 32)
        with torch.no_grad():
            self.first.weight[5] = 0.0
            self.first.weight[5, 0] = 25.0
            self.last.weight[7, 5] = 5.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.first(x)))


class TwoReaders(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(x))
        return self.last(hidden) + hidden[:, :32]


class Even(FeedForward):
    def __init__(self) -> None:
        super().__init__()
        nn.init.uniform_(self.first.weight, -0.1, 0.1)
        nn.init.uniform_(self.last.weight, -0.1, 0.1)


class MostlyZeros(FeedForward):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.last.weight[:, 6::2] = 0
            self.last.weight[:, :5] = 0


def case(net: type[nn.Module] = FeedForward) -> tuple[ExportedProgram, Tensor, Statistics]:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(net().eval(), (torch.randn(2, 32),), dynamic_shapes=({0: batch},))
    inputs = torch.randn(512, 32)
    inputs[:, 0] = (torch.arange(512) % 16 == 0).float()
    return program, inputs, calibrate(program, [(inputs,)], "histogram")  # outputs here differ in size, and each counts as much


def spread(program: ExportedProgram, statistics: Statistics, rules: QuantRules, float_layers: tuple[str, ...] = ()) -> GraphModule:
    module = canonical_module(program)
    spread_outliers(module, statistics, rules, float_layers)
    module.recompile()
    return module


def widths(module: GraphModule) -> list[tuple[int, ...]]:
    weights = (constant(module, node.args[1]) for node in module.graph.nodes if op_name(node) == "linear")
    return [tuple(weight.shape) for weight in weights if weight is not None]


def noise(program: ExportedProgram, statistics: Statistics, rules: QuantRules, inputs: Tensor) -> float:
    """Noise to signal, the mean of all outputs."""
    with torch.no_grad():
        answers, exact = render(program, statistics, rules, MATMUL).module(inputs), program.module()(inputs)
        return float(((answers - exact).square().mean(dim=0) / exact.square().mean(dim=0)).mean())


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt", "coreml"])
def test_copies_change_nothing_in_float_and_lower_the_error_of_integers(runtime: str) -> None:
    program, inputs, statistics = case()
    rules = rules_for(runtime)
    module = spread(program, statistics, rules)
    assert widths(module) == WIDE
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), program.module()(inputs), atol=1e-4, rtol=1e-5)
    with patch("edgepress.compress.quantize.split_outliers.WORTH", 0.0):
        scaled = noise(program, statistics, rules, inputs)
    assert noise(program, statistics, rules, inputs) < scaled / 8


@pytest.mark.parametrize("net", [Even, TwoReaders, MostlyZeros])
def test_what_has_no_outlier_or_another_reader_or_a_pattern_of_zeros_is_not_split(net: type[nn.Module]) -> None:
    program, _, statistics = case(net)
    assert widths(spread(program, statistics, rules_for("onnxruntime"))) == PLAIN


def test_what_a_float_layer_reads_is_not_split() -> None:
    program, _, statistics = case()
    last = [node.name for node in canonical_module(program).graph.nodes if op_name(node) == "linear"][-1]
    assert widths(spread(program, statistics, rules_for("onnxruntime"), (last,))) == PLAIN


def test_algorithms_refine_the_copies() -> None:
    program, inputs, statistics = case()
    rules = rules_for("onnxruntime")
    refined = refine(program, statistics, rules, MATMUL, [(inputs,)], refiners_of(["gptq", "bias-correction"], seed=0))
    assert noise(program, refined, rules, inputs) < noise(program, statistics, rules, inputs)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**16), st.sampled_from([None, *GUARDS]), st.sampled_from([0, None])
)
def test_integers_of_copies_sum_to_the_rounded_sum(copies: list[int], seed: int, guard: Guard | None, axis: int | None) -> None:
    random, rounding = np.random.default_rng(seed), Rounding(axis, (-127, 127), guard, torch.tensor(2.0**-28))
    index = random.permutation(np.repeat(np.arange(len(copies)), copies))
    shared = torch.from_numpy(random.normal(size=(4, len(copies)))) / torch.tensor(copies)
    moved = _round_apart(shared[:, index], index, rounding)
    step = rounding.grid(moved).scale.expand(4, 1)
    for channel, count in enumerate(copies):
        mine = moved[:, index == channel]
        torch.testing.assert_close(mine.sum(dim=1), count * shared[:, channel])
        error = (mine / step).round().sum(dim=1) - (count * shared[:, channel] / step[:, 0])
        assert float(error.abs().max()) <= 0.5 + 1e-6


def test_copies_of_two_channels_take_turns() -> None:
    """Neighbours of one sign share the integers of x86 runtimes: two copies of a large weight side by side would both be cut."""
    weights, channels = np.full((4, 64), 0.1), np.stack([-np.ones(64), np.ones(64), np.ones(64)])
    weights[:, [5, 9]], channels[:2, [5, 9]], channels[2, [5, 9]] = 4.0, [[-30.0], [30.0]], 400.0
    index = _chosen(weights, channels, rules_for("onnxruntime"))
    assert index is not None and len(index) == 80
    assert index[:64].tolist() == list(range(64)) and index[64:].tolist() == [5, 9] * 8
