"""Refining a rendering layer by layer: bias correction, and what the walk promises to every algorithm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgepress.compress.quantize import Statistics, calibrate, render
from edgepress.compress.quantize.bias_correction import correct_bias
from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.layerwise import refine
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import NETS, outputs_of, program_of, samples_of

STATIC = Scheme("int8", "static")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")


def coarse(runtime: str) -> QuantRules:
    """Four bits, one scale per weight tensor."""
    return replace(rules_for(runtime), weight_min=-7, weight_max=7, per_channel=frozenset())


def calibrated(name: str) -> Statistics:
    return calibrate(program_of(name), [samples_of(name, 64)])


def error(name: str, statistics: Statistics, rules: QuantRules) -> float:
    """Squared error of a rendering on samples that calibration did not see, relative to the outputs."""
    program, inputs = program_of(name), samples_of(name, 96)
    exact = outputs_of(program.module(), inputs)[0]
    return float((outputs_of(render(program, statistics, rules, STATIC).module, inputs)[0] - exact).square().mean() / exact.square().mean())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["residual", "inverted", "shuffle"])
def test_bias_correction_lowers_the_error_of_coarse_weights_on_every_runtime(name: str, runtime: str) -> None:
    statistics, rules = calibrated(name), coarse(runtime)
    corrected = refine(program_of(name), statistics, rules, STATIC, [samples_of(name, 64)], [correct_bias])
    assert error(name, corrected, rules) < 0.8 * error(name, statistics, rules)


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"shared"}))
def test_the_walk_computes_what_the_rendering_does(name: str) -> None:
    seen: list[Layer] = []

    def look(layer: Layer) -> Layer:
        seen.append(layer)
        return layer

    inputs, rules = samples_of(name, 16), rules_for("onnxruntime")
    program, statistics = program_of(name), calibrated(name)
    refine(program, statistics, rules, STATIC, [inputs], [look])
    rendered = render(program, statistics, rules, STATIC).module
    answers = _values(rendered, {layer.node.name for layer in seen}, inputs)
    assert len(seen) >= 2 and answers.keys() == {layer.node.name for layer in seen}
    for layer in seen:
        apart = (answers[layer.node.name] - layer.answer).abs()
        off = (layer.target - layer.answer).abs().mean()  # a value between two integers may round to either
        assert apart.mean() < 0.1 * off + 1e-5


def _values(module: torch.fx.GraphModule, names: set[str], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    class Look(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            result = super().run_node(node)
            if node.name in names:
                found[node.name] = result
            return result

    with torch.no_grad():
        Look(module).run(*inputs)
    return found


def test_means_of_every_layer_agree_with_the_float_model_on_the_samples_that_were_used() -> None:
    after: list[Tensor] = []

    def measure(layer: Layer) -> Layer:
        assert layer.weights is not None
        shift = (layer.answer - layer.target) * layer.weights.unsqueeze(layer.channels)
        after.append(shift.mean((0, 2, 3) if layer.channels == 1 and layer.target.dim() == 4 else 0))
        return layer

    refine(
        program_of("residual"), calibrated("residual"), coarse("tensorrt"), STATIC, [samples_of("residual", 64)], [correct_bias, measure]
    )
    assert len(after) > 4 and max(float(shift.abs().max()) for shift in after) < 1e-5


def test_corrections_survive_the_disk_and_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        result = refine(
            program_of("residual"), calibrated("residual"), coarse("litert"), STATIC, [samples_of("residual", 32)], [correct_bias]
        )
        result.save(tmp_path / folder)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Statistics.load(tmp_path / "a")
    assert loaded.corrections.keys() == result.corrections.keys() and len(loaded.corrections) >= 5
    assert all(np.array_equal(value, loaded.corrections[name]) for name, value in result.corrections.items())


def test_layers_that_share_their_weights_are_left_as_they_are() -> None:
    assert not refine(
        program_of("shared"), calibrated("shared"), coarse("litert"), STATIC, [samples_of("shared", 32)], [correct_bias]
    ).corrections


def test_no_samples_are_refused() -> None:
    with pytest.raises(QuantizationError, match="no calibration samples"):
        refine(program_of("residual"), calibrated("residual"), coarse("litert"), STATIC, [], [correct_bias])
