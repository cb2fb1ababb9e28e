"""What each layer's integers cost, and layers that are kept in float."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import Rendered, Statistics, calibrate, render
from edgepress.compress.quantize.fallback import ranked
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.placement import KEPT
from edgepress.compress.quantize.sensitivity import sensitivities
from edgepress.targets.errors import ConfigError, QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import NETS, outputs_of, program_of, samples_of

STATIC = Scheme("int8", "static")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")
#: Net -> a batch norm before a rectifier, the layer that reads it, and where its channel 0 arrives there.
SPOILT = {"residual": ("a.1", "b.0", 0), "inverted": ("depth.1", "project.0", 0), "dense": ("b.1", "c.0", 6)}


@cache
def spoilt(name: str) -> tuple[torch.export.ExportedProgram, Statistics]:
    """A channel that is always zero is read with weights 500 times as large as all others: nothing in float, everything in integers."""
    torch.manual_seed(0)
    build, inputs = NETS[name]
    module = build().eval()
    norm, layer, channel = SPOILT[name]
    with torch.no_grad():
        module.get_submodule(norm).weight[0] = 0  # type: ignore[index,operator]
        weight = module.get_submodule(layer).weight
        weight[:, channel] = 500 * weight.abs().max()  # type: ignore[index,operator]
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module, inputs(2), dynamic_shapes=tuple({0: batch} for _ in inputs(2)), strict=False)
    return program, calibrate(program, [samples_of(name, 64)])


def error(rendered: Rendered, program: torch.export.ExportedProgram, name: str) -> float:
    """Squared error on samples that calibration did not see, relative to the outputs."""
    inputs = samples_of(name, 96)
    exact = outputs_of(program.module(), inputs)[0]
    return float((outputs_of(rendered.module, inputs)[0] - exact).square().mean() / exact.square().mean())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SPOILT)
def test_the_one_spoilt_layer_comes_first_and_keeping_it_in_float_heals_the_model(name: str, runtime: str) -> None:
    (program, statistics), rules = spoilt(name), rules_for(runtime)
    layers = sensitivities(program, statistics, rules, STATIC, [samples_of(name, 32)])
    first, second = sorted(layers, key=lambda layer: -layer.noise)[:2]
    assert first.layer == SPOILT[name][1] and ranked(layers)[0] == first and first.noise > 5 * second.noise
    kept = render(program, statistics, rules, replace(STATIC, float_layers=(first.node,)))
    assert error(kept, program, name) < 0.2 * error(render(program, statistics, rules, STATIC), program, name)
    assert {"op": "aten.conv2d", "count": 1, "reason": KEPT} in kept.float_ops


@pytest.mark.parametrize("name", ["inverted", "shuffle", "shared", "vision-fused", "sentence-eager"])
def test_one_layer_alone_costs_what_a_rendering_of_that_layer_alone_does(name: str) -> None:
    rules, program = bare("tensorrt"), program_of(name)
    statistics, inputs = calibrate(program, [samples_of(name, 64)]), samples_of(name, 32)
    layers = sensitivities(program, statistics, rules, STATIC, [inputs])
    exact = outputs_of(program.module(), inputs)
    for layer in layers[:2]:
        others = tuple(other.node for other in layers if other is not layer)
        found = outputs_of(render(program, statistics, rules, replace(STATIC, float_layers=others)).module, inputs)
        ratios = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(found, exact, strict=True)]
        assert np.mean(ratios) == pytest.approx(layer.noise, rel=0.2, abs=1e-10)


def test_a_4_bit_weight_alone_costs_what_a_rendering_of_it_alone_does() -> None:
    rules, program, inputs = bare("tensorrt"), program_of("residual"), samples_of("residual", 32)
    statistics = calibrate(program, [samples_of("residual", 64)])
    layers = sensitivities(program, statistics, rules, STATIC, [inputs], (4,))
    (exact,) = outputs_of(program.module(), inputs)
    narrow = [layer for layer in layers if layer.int4_noise is not None]
    assert {layer.weights for layer in layers} - {layer.weights for layer in narrow} == {216, 128, 80}, "small weights gain nothing"
    for layer in narrow[:2]:
        others = tuple(other.node for other in layers if other is not layer)
        module = render(program, statistics, rules, replace(STATIC, float_layers=others, int4_layers=(layer.node,))).module
        (weight,) = (tensor for tensor in module.buffers() if tensor.dtype == torch.int8 and tensor.dim() == 4)
        assert int(weight.min()) == -7 or int(weight.max()) == 7, "the grid ends elsewhere"
        assert int(weight.abs().max()) == 7 and layer.int4_noise is not None
        (found,) = outputs_of(module, inputs)
        ratio = float((found - exact).square().sum() / exact.square().sum())
        assert ratio == pytest.approx(layer.int4_noise, rel=0.2) and layer.int4_noise > 4 * layer.noise


def test_a_2_bit_weight_alone_costs_what_a_rendering_of_it_alone_does() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64), torch.nn.ReLU(), torch.nn.Linear(64, 7)
    ).eval()
    with torch.no_grad():
        net[2].weight[torch.rand(64, 96) < 0.5] = 0
    inputs = (torch.randn(64, 64),)
    program = torch.export.export(net, inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    rules, statistics = bare("tensorrt"), calibrate(program, [inputs])
    layers = sensitivities(program, statistics, rules, STATIC, [inputs], (4, 2))
    first, sparse, small = layers
    assert sparse.int2_noise is None and sparse.int4_noise is not None, "2 bits have no zero for the half that is"
    assert small.int2_noise is None and first.int2_noise is not None
    scheme = replace(STATIC, float_layers=(sparse.node, small.node), int2_layers=(first.node,))
    module = render(program, statistics, rules, scheme).module
    (weight,) = (tensor for tensor in module.buffers() if tensor.dtype == torch.int8 and tensor.dim() == 2)
    assert sorted(weight.unique().tolist()) == [-3, -1, 1, 3] and bool((weight.abs() == 3).any(dim=1).all())
    (found,), (exact,) = outputs_of(module, inputs), outputs_of(program.module(), inputs)
    ratio = float((found - exact).square().sum() / exact.square().sum())
    assert ratio == pytest.approx(first.int2_noise, rel=0.05) and first.int2_noise > 4 * (first.int4_noise or 0) > 0


@pytest.mark.parametrize("bits", [4, 2])
def test_narrow_weights_are_measured_as_gptq_rounds_them(bits: int) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64)).eval()
    mixed = torch.randn(8, 64)  # a few directions hold all inputs: what rounding does in the others costs nothing
    seen, judged = ((torch.randn(512, 8) @ mixed,) for _ in range(2))
    program = torch.export.export(net, seen, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    rules, statistics = bare("onnxruntime"), calibrate(program, [seen])
    nearest = sensitivities(program, statistics, rules, STATIC, [judged], (bits,))
    layers = sensitivities(program, statistics, rules, STATIC, [judged], (bits,), lambda: [seen])
    field = f"int{bits}_noise"
    assert getattr(layers[0], field) < 0.3 * getattr(nearest[0], field)
    assert [layer.noise for layer in layers] == [layer.noise for layer in nearest]
    scheme = replace(STATIC, float_layers=(layers[1].node,), **{f"int{bits}_layers": (layers[0].node,)})
    refined = refine(program, statistics, rules, scheme, [seen], [gptq])
    (found,), (exact,) = outputs_of(render(program, refined, rules, scheme).module, judged), outputs_of(program.module(), judged)
    assert float((found - exact).square().sum() / exact.square().sum()) == pytest.approx(getattr(layers[0], field), rel=0.1)


def bare(runtime: str) -> QuantRules:
    """Heavy layers alone, nothing rescaled, outputs in float: a layer in integers rounds nothing but what it reads."""
    heavy = frozenset({"conv", "conv_transpose", "linear", "matmul"})
    return replace(rules_for(runtime), placement=heavy, float_output=heavy, quantize_outputs=False, smooth=False)


def test_cutting_samples_into_batches_changes_nothing() -> None:
    program, statistics = program_of("residual"), calibrate(program_of("residual"), [samples_of("residual", 64)])
    (whole,) = (samples_of("residual", 30),)
    pieces = [tuple(item[start : start + 8] for item in whole) for start in range(0, 30, 8)]
    once = sensitivities(program, statistics, rules_for("litert"), STATIC, [whole])
    cut = sensitivities(program, statistics, rules_for("litert"), STATIC, pieces)
    assert [layer.noise for layer in cut] == pytest.approx([layer.noise for layer in once], rel=1e-3)
    assert sum(layer.macs_share for layer in once) == pytest.approx(1) and all(layer.weights > 0 for layer in once)


def test_layers_in_float_leave_no_integers_around_them() -> None:
    program, statistics = program_of("residual"), calibrate(program_of("residual"), [samples_of("residual", 64)])
    layers = sensitivities(program, statistics, rules_for("tensorrt"), STATIC, [samples_of("residual", 8)])
    names = tuple(layer.node for layer in layers[:-1])
    module = render(program, statistics, rules_for("tensorrt"), replace(STATIC, float_layers=names)).module
    rounded = [node for node in module.graph.nodes if "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target)]
    assert len(rounded) <= 2  # what the last layer reads, and what it writes


def test_an_unknown_layer_and_a_scheme_without_layers_are_refused() -> None:
    program, statistics = program_of("residual"), calibrate(program_of("residual"), [samples_of("residual", 8)])
    with pytest.raises(QuantizationError, match="no layer 'conv2d_99' to keep in float"):
        render(program, statistics, rules_for("litert"), replace(STATIC, float_layers=("conv2d_99",)))
    with pytest.raises(ConfigError, match="cannot keep single layers in float"):
        Scheme("int8", "dynamic", ("conv2d",))
    with pytest.raises(QuantizationError, match="there are no samples"):
        sensitivities(program, statistics, rules_for("litert"), STATIC, [])


class Classes(nn.Module):
    """Answers the number of a class for each pixel, or the scores."""

    def __init__(self, chosen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.chosen = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), chosen

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 8, 8) -> int64 (batch, 6, 6), or the scores."""
        scores = self.head(torch.relu(self.body(x)))
        return scores.argmax(1) if self.chosen else scores


def test_where_a_model_answers_classes_layers_are_measured_by_the_scores() -> None:
    x, found, rules = torch.randn(8, 3, 8, 8), [], rules_for("onnxruntime")
    for chosen in (True, False):
        program = torch.export.export(Classes(chosen).eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        statistics = calibrate(program, [[x]])
        assert statistics.weights is not None and statistics.weights.tensors
        found.append((statistics.weights.tensors.keys(), sensitivities(program, statistics, rules, STATIC, [[x]])))
    assert found[0] == found[1]
