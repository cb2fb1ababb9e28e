"""8-bit weights whose sums saturate on no x86 CPU: every pair within the limit, whatever rounds them, and little lost for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import GraphModule, Node

from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.adaround import AdaRound
from edgepress.compress.quantize.graph import attribute, kind_of
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layer import Refiner
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.learnt_rounding import RoundingOptions
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.saturation import LIMIT, Guard, Pairs, guard_of
from edgepress.compress.quantize.statistics import Statistics
from edgepress.compress.quantize.unpacked import INTEGERS
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for
from tests.compress.quantize.nets import outputs_of, program_of, samples_of
from tests.saturation import saturates

STATIC = Scheme("int8", "static")
GUARDED = ("onnxruntime", "openvino")
SMALLEST = torch.tensor(2.0**-28)
FLATTENED, CHANNELS = Pairs(1, flattened=True), Pairs(1, flattened=False)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Of linear layers and convolutions, all sorts of distributions, constants and zeros among them."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 9)), *draw(st.sampled_from([(), (1,), (3,), (2, 3), (1, 1, 2)])))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    shaped: Callable[[Tensor], Tensor] = draw(
        st.sampled_from([torch.abs, torch.sign, torch.zeros_like, lambda w: w**3, lambda w: w, torch.ones_like])
    )
    return shaped(drawn) * 10.0 ** draw(st.integers(-3, 3))


def ordered(integers: np.ndarray, flattened: bool) -> np.ndarray:
    """(outputs or positions of them, inputs) as a kernel adds them."""
    last = np.moveaxis(integers, 1, -1)
    return last.reshape(len(last), -1) if flattened else last.reshape(-1, last.shape[-1])


@given(weights(), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_no_pair_exceeds_the_limit_whatever_is_chosen_within_the_bounds(
    weight: Tensor, flattened: bool, per_channel: bool, seed: int
) -> None:
    grid = Guard(FLATTENED if flattened else CHANNELS).grid(weight, 0 if per_channel else None, SMALLEST)
    lowest, highest = (torch.as_tensor(bound).numpy() for bound in grid.bounds)
    random = np.random.default_rng(seed)
    chosen = np.where(random.random(lowest.shape) < 0.5, lowest, np.where(random.random(lowest.shape) < 0.5, highest, 0))
    nearest = grid.integers.numpy()
    for integers in (nearest, chosen, lowest, highest):
        assert not saturates(ordered(integers, flattened)) and np.abs(integers).max() <= 127
    assert (lowest <= nearest).all() and (nearest <= highest).all()


def test_what_two_neighbours_exceed_the_limit_by_is_cut_off_both() -> None:
    """Where so many others gain by small steps that this pays."""
    weight = 0.05 * torch.randn(1, 20000, generator=torch.Generator().manual_seed(0))
    weight[0, :4] = torch.tensor([-1.0, -0.1, 1.0, -0.1])
    assert Guard(FLATTENED).grid(weight, 0, SMALLEST).integers[0, :4].tolist() == [-121.0, -7.0, 127.0, -13.0]


@pytest.mark.parametrize("pairs", [FLATTENED, CHANNELS, Pairs(0, flattened=False)])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 3, 3), (2, 1, 3)])
def test_joining_is_the_inverse_of_splitting(pairs: Pairs, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    assert torch.equal(pairs.join(pairs.split(weight), weight.shape), weight)


def test_little_is_lost_against_all_integers() -> None:
    """A quarter of the noise is what a bit more could save at most."""
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    errors = {end: (weight / largest * end).round() * largest / end - weight for end in (63, 127)}
    noise = {end: float(error.square().mean()) for end, error in errors.items()}
    for pairs in (FLATTENED, CHANNELS):
        guarded = float((Guard(pairs).grid(weight, 0, SMALLEST).nearest - weight).square().mean())
        assert noise[127] < guarded < 0.45 * noise[63]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Guard | None]]] = {
    "linear": (nn.Linear(6, 4), (6,), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(CHANNELS), "tensorrt": None}),
    "convolution": (nn.Conv2d(3, 4, 3), (3, 8, 8), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(CHANNELS), "litert": None}),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8), {"onnxruntime": None, "openvino": None}),
    "two outputs a channel": (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(None)}),
    "one channel": (nn.Conv2d(1, 4, 3), (1, 8, 8), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(None)}),
    "groups of three": (nn.Conv1d(6, 4, 3, groups=2), (6, 8), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(None)}),
    "groups of two": (nn.Conv1d(4, 4, 3, groups=2), (4, 8), {"onnxruntime": Guard(FLATTENED), "openvino": Guard(CHANNELS)}),
    "transposed": (nn.ConvTranspose2d(4, 6, 2), (4, 8, 8), {"openvino": Guard(Pairs(0, flattened=False))}),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 8, 8), {"openvino": Guard(None)}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_has_the_guard_its_kernels_need(name: str) -> None:
    module, shape, expected = LAYERS[name]
    graph = exported(module, torch.randn(2, *shape)).module().graph
    layer = next(node for node in graph.nodes if kind_of(node) in ("conv", "conv_transpose", "linear"))
    weight = next(iter(module.parameters())).shape
    for runtime, guard in expected.items():
        assert guard_of(layer, weight, rules_for(runtime)) == guard
        assert guard_of(layer, weight, rules_for(runtime).of(Scheme("int8", "static", weight_bits=8))) is None


def exported(module: nn.Module, inputs: Tensor) -> ExportedProgram:
    return export(module.eval(), (inputs,), dynamic_shapes=({0: Dim("batch", min=1)},))


def stored(module: GraphModule) -> dict[Node, np.ndarray]:
    """Layer -> its integers in a rendering."""
    layers = [node for node in module.graph.nodes if kind_of(node) in ("conv", "linear") and "dequantize" in str(node.args[1].target)]
    found = {node: str(node.args[1].args[0].target) for node in layers}
    return {node: attribute(module, name).numpy() for node, name in found.items() if not name.endswith(INTEGERS)}


@cache
def calibrated(name: str) -> Statistics:
    return calibrate(program_of(name), [samples_of(name, 32)])


@pytest.mark.parametrize("refiner", [None, gptq, AdaRound(0, RoundingOptions(steps=20, lr=0.1))], ids=["nearest", "gptq", "adaround"])
@pytest.mark.parametrize("name", ["residual", "inverted", "shuffle", "vision-explicit"])
@pytest.mark.parametrize("runtime", GUARDED)
def test_no_layer_of_a_rendering_saturates(runtime: str, name: str, refiner: Refiner | None) -> None:
    statistics, rules = calibrated(name), rules_for(runtime)
    if refiner is not None:
        statistics = refine(program_of(name), statistics, rules, STATIC, [samples_of(name, 32)], [refiner])
        assert any(key.endswith(".weight") for key in statistics.corrections)
    layers = stored(render(program_of(name), statistics, rules, STATIC).module)
    assert max(int(np.abs(integers).max()) for integers in layers.values()) > LIMIT / 2
    floats = {node.name: node for node in placed(program_of(name), statistics, rules, STATIC)[0].graph.nodes}
    for node, integers in layers.items():
        if guard_of(floats[node.name], torch.Size(integers.shape), rules) is not None:
            assert not saturates(ordered(integers, rules.added_in_pairs == "flattened")), node


def test_layers_store_the_integers_that_an_algorithm_chose() -> None:
    rules = rules_for("onnxruntime")
    statistics = refine(program_of("residual"), calibrated("residual"), rules, STATIC, [samples_of("residual", 32)], [gptq])
    layers = stored(render(program_of("residual"), statistics, rules, STATIC).module)
    chosen = [node for node in layers if f"{node.name}.weight" in statistics.corrections]
    assert chosen
    for node in chosen:
        weight, scale = (statistics.corrections[f"{node.name}.{part}"] for part in ("weight", "scale"))
        np.testing.assert_array_equal(layers[node], np.round(weight / scale))


class Tied(nn.Module):
    """A table of words, and a linear layer with the same weight; (batch, words) -> (batch, words, 8), (batch, words, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.table(tokens)
        return rows, F.linear(torch.relu(rows), self.table.weight)


def test_what_else_reads_a_weight_keeps_it_in_float() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(12, (32, 5))
    program = exported(Tied(), tokens)
    rendered = render(program, calibrate(program, [(tokens,)]), rules_for("onnxruntime"), STATIC).module
    (rows, logits), (exact, expected) = (outputs_of(module, (tokens,)) for module in (rendered, program.module()))
    assert torch.equal(rows, exact)
    assert not torch.equal(logits, expected) and float((logits - expected).abs().max()) < 0.05 * float(expected.abs().max())
    (integers,) = stored(rendered).values()
    assert not saturates(integers)
