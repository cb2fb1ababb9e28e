"""Learnt ranges (LSQ): what a block's readers ignore is cut off, and every tensor that shares a scale keeps sharing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.quantize import Statistics, calibrate, render
from edgepress.compress.quantize.block_reconstruction import BlockReconstruction
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.learnt_ranges import RangeLearning, RangeOptions
from edgepress.compress.quantize.learnt_rounding import RoundingOptions
from edgepress.compress.quantize.placement import data_inputs
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.sharing import RANGE_PART, qparams
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import outputs_of, program_of, samples_of

STATIC = Scheme("int8", "static")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")
QUICK = RangeLearning(0, RangeOptions(steps=20, lr=0.1, batch=16))
WILD = RangeLearning(0, RangeOptions(steps=3, lr=50.0))


class Outliers(nn.Module):
    """A residual block inside which one channel in 16 is 300 times as large as the others, and its reader hardly looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.a.weight[0] *= 300
            self.b.weight[:, 0] *= 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 3)."""
        x = self.stem(x)
        return self.head(torch.relu(x + self.b(torch.relu(self.a(x)))))


def outliers() -> ExportedProgram:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(Outliers().eval(), (torch.randn(2, 8),), dynamic_shapes=({0: batch},))


def inputs(count: int) -> tuple[Tensor]:
    return (torch.randn(count, 8, generator=torch.Generator().manual_seed(count)),)


def error(program: ExportedProgram, statistics: Statistics, rules: QuantRules, judged: tuple[Tensor, ...]) -> float:
    """Mean squared error of the rendering's first output."""
    rendered, exact = (outputs_of(m, judged)[0] for m in (render(program, statistics, rules, STATIC).module, program.module()))
    return float((rendered - exact).square().mean())


def four_bits(runtime: str) -> QuantRules:
    """Activations of four bits, for which ranges that were searched for eight are too wide."""
    rules = rules_for(runtime)
    low, high = (-7, 7) if rules.activation_symmetric else (rules.activation_min, rules.activation_min + 15)
    return replace(rules, activation_min=low, activation_max=high)


def learnt(name: str, rules: QuantRules, learning: RangeLearning = QUICK) -> tuple[Statistics, Statistics]:
    """Statistics of one of the small nets before and after."""
    before = calibrate(program_of(name), [samples_of(name, 16)])
    return before, refine(program_of(name), before, rules, STATIC, [samples_of(name, 16)], [learning])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outliers_that_nobody_reads_no_longer_cost_the_others_their_integers(runtime: str) -> None:
    program, rules, seen, judged = outliers(), replace(rules_for(runtime), smooth=False), inputs(128), inputs(200)
    calibrated = calibrate(program, [seen], "histogram")
    after = refine(program, calibrated, rules, STATIC, [seen], [RangeLearning(0, RangeOptions(steps=120, lr=0.15))])
    assert error(program, after, rules, judged) < 0.5 * error(program, calibrated, rules, judged)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [("residual", runtime) for runtime in RUNTIMES] + [("dense", "litert"), ("shuffle", "openvino")],
)
def test_tensors_that_share_a_scale_still_do_and_every_learnt_range_is_rendered(name: str, runtime: str) -> None:
    rules = four_bits(runtime)
    before, after = learnt(name, rules)
    ranges = {key.removesuffix(f".{RANGE_PART}"): value for key, value in after.corrections.items()}
    assert ranges and all(key.endswith(f".{RANGE_PART}") for key in after.corrections)
    module, placement, parameters = placed(program_of(name), after, rules, STATIC)
    plain = placed(program_of(name), before, rules, STATIC)[2]
    others = {node.name: node for node in plain._parent}
    for node, kind in placement.kinds.items():
        if kind in rules.shared:
            assert len({parameters.of(item) for item in (*data_inputs(node, kind), placement.tails[node])}) == 1
    moved = {node.name for node in module.graph.nodes if node in parameters._parent and parameters.of(node) != plain.of(others[node.name])}
    assert moved and moved <= ranges.keys()
    if rules.activation_symmetric:
        assert {parameters.of(node).zero_point for node in parameters._parent} == {0}
    centred = [item for node, kind in placement.kinds.items() if kind in rules.centred_inputs for item in data_inputs(node, kind)]
    assert {parameters.of(item).zero_point for item in centred} <= {rules.activation_min, (rules.activation_max + 1) // 2}
    scales = {float(node.args[1]) for node in render(program_of(name), after, rules, STATIC).module.graph.nodes if quantizes(node)}
    assert {parameters.of(node).scale for node in placement.outputs} <= scales


def quantizes(node: torch.fx.Node) -> bool:
    return "quantize_per_tensor" in str(node.target) and isinstance(node.args[1], float)


@pytest.mark.parametrize("name", ["residual", "inverted", "sentence-eager", "shared"])
def test_ranges_that_learning_does_not_help_stay_as_calibrated(name: str) -> None:
    assert not learnt(name, rules_for("onnxruntime"), WILD)[1].corrections


def test_a_block_is_rounded_for_the_ranges_that_were_learnt_and_both_are_kept() -> None:
    rules = replace(rules_for("onnxruntime"), weight_min=-7, weight_max=7, activation_max=15)
    program, seen, judged = program_of("residual"), samples_of("residual", 64), samples_of("residual", 96)
    calibrated, rounding = calibrate(program, [seen], "histogram"), BlockReconstruction(0, RoundingOptions(steps=60, lr=0.1))
    ranges = RangeLearning(0, RangeOptions(steps=100))
    alone, both = (refine(program, calibrated, rules, STATIC, [seen], each) for each in ([ranges], [ranges, rounding]))
    assert {key.rpartition(".")[2] for key in both.corrections} == {"weight", "scale", RANGE_PART}
    assert error(program, both, rules, judged) < error(program, alone, rules, judged)


def test_learnt_ranges_survive_the_disk_and_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for index, seed in enumerate((0, 0, 1)):
        result = learnt("shuffle", four_bits("litert"), replace(QUICK, seed=seed))[1]
        result.save(tmp_path / str(index))
    a, b, c = ((tmp_path / str(index)).read_bytes() for index in range(3))
    assert a == b != c
    loaded = Statistics.load(tmp_path / "2")
    assert loaded.corrections.keys() == result.corrections.keys()
    assert all(np.array_equal(value, loaded.corrections[name]) for name, value in result.corrections.items())


def test_constant_activations_are_left_alone_and_no_samples_are_refused() -> None:
    program = outliers()
    zeros = (torch.zeros(16, 8),)
    refine(program, calibrate(program, [zeros]), rules_for("onnxruntime"), STATIC, [zeros], [QUICK])
    with pytest.raises(QuantizationError, match="no calibration samples"):
        refine(program, calibrate(program, [inputs(16)]), rules_for("onnxruntime"), STATIC, [], [QUICK])


def test_the_file_for_onnx_runtime_has_the_learnt_ranges(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    program, rules, seen = outliers(), rules_for("onnxruntime"), inputs(32)
    before = calibrate(program, [seen], "histogram")
    after = refine(program, before, rules, STATIC, [seen], [QUICK])
    torch.export.save(program, tmp_path / "model.pt2")
    after.save(tmp_path / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 3)),))
    target = Target("onnxruntime", "onnxruntime", "CPU", "int8")
    request = ExportRequest(tmp_path / "model.pt2", signature, tmp_path / "statistics", target, STATIC, (seen[0].numpy(),))
    EXPORTERS.get("onnxruntime")().export(request, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {float(stored[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear" and node.input[1] in stored}
    key = f"relu.{RANGE_PART}"
    low, high = after.corrections[key]
    assert qparams((low, high), rules).scale in scales
    assert qparams(before.range_of("relu", False), rules).scale not in scales


def test_ranges_come_before_rounding_and_before_biases() -> None:
    assert refiners_of(["bias-correction", "brecq", "lsq"], 3)[0] == RangeLearning(3)
