"""Timing layers alone: which widths, what is exported, and tables from real runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgepress.compress.prune import analyse
from edgepress.compress.prune.heavy import Configuration
from edgepress.compress.prune.latency import LatencyTable
from edgepress.steps.layers import latencies
from edgepress.targets.errors import MeasurementError
from edgepress.validators.layer_bench import INT8, Bench, LayerPlan, interleaved
from edgepress.validators.layer_latency import even_removals, time_layer, widths_of
from edgepress.validators.layer_programs import layer_module, save_program
from edgepress.validators.runtimes.onnxruntime import OnnxRuntime

QUICK = LayerPlan("numpy", rounds=20, least=5, seconds=1.0)
CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "kernel": [3, 3]}


def conv(reads: int, makes: int, free: tuple[bool, bool] = (True, True), **changes: Any) -> Configuration:
    arguments = CONV | changes
    return Configuration("conv2d", (reads, makes), free, (1, reads * arguments["groups"], 8, 8), arguments)


class Machine:
    """A clock that calls advance by set times."""

    def __init__(self) -> None:
        self.now = 0

    def clock(self) -> int:
        return self.now

    def takes(self, *ms: float) -> Callable[[], None]:
        """Takes these times in turn."""
        calls = 0

        def call() -> None:
            nonlocal calls
            self.now += int(ms[calls % len(ms)] * 1e6)
            calls += 1

        return call


def test_each_call_gets_its_own_median() -> None:
    machine = Machine()
    found = interleaved([machine.takes(1.0, 1.0, 9.0), machine.takes(2.0), machine.takes(3.0, 3.0, 3.0, 0.1)], QUICK, machine.clock)
    assert found == pytest.approx([1.0, 2.0, 3.0])


def test_slow_calls_stop_at_the_deadline_but_not_before_the_least_number() -> None:
    machine, counts = Machine(), [0]

    def slow() -> None:
        counts[0] += 1
        machine.now += int(2e9)

    interleaved([slow], QUICK, machine.clock)
    assert counts[0] == QUICK.least


def test_a_call_that_fails_is_a_measurement_error() -> None:
    def fails() -> None:
        raise RuntimeError("bad kernel")

    with pytest.raises(MeasurementError, match="RuntimeError: bad kernel"):
        interleaved([fails], QUICK)


def test_widths_are_multiples_and_hold_the_last_row_and_column() -> None:
    found = widths_of([conv(32, 64)], LayerPlan("numpy"))[conv(32, 64).key]
    reads, makes = ({pair[side] for pair in found} for side in (0, 1))
    assert reads == {8, 16, 24, 32} and makes == {8, 16, 24, 32, 40, 48, 56, 64}
    assert {(read, 64) for read in reads} | {(32, make) for make in makes} < set(found)
    assert len(found) == len(set(found)) == 4 + 8 - 1 + 4


def test_only_the_side_that_can_shrink_is_varied() -> None:
    assert widths_of([conv(3, 16, (False, True))], LayerPlan("numpy")).popitem()[1] == [(3, 16), (3, 8)]
    assert widths_of([conv(3, 16, (False, False))], LayerPlan("numpy")).popitem()[1] == [(3, 16)]


def test_a_layer_narrower_than_the_multiple_is_timed_at_any_width() -> None:
    assert widths_of([conv(3, 6, (False, True))], LayerPlan("numpy", multiple=8)).popitem()[1] == [(3, 6), *((3, n) for n in range(1, 6))]


def test_many_configurations_share_the_exports() -> None:
    many = [conv(256, 256 + 8 * i) for i in range(12)]
    found = widths_of(many, LayerPlan("numpy", exports=100))
    assert sum(map(len, found.values())) <= 100
    assert all(len(pairs) > 3 for pairs in found.values())


LAYERS = {
    "conv": (conv(16, 24), (8, 16), (2, 16, 8, 8)),
    "strided": (conv(16, 24, stride=[2, 2]), (8, 16), (2, 16, 4, 4)),
    "same padding": (conv(16, 24, padding="same"), (8, 16), (2, 16, 8, 8)),
    "depthwise": (conv(1, 24, groups=24), (1, 8), (2, 8, 8, 8)),
    "grouped": (conv(4, 32, groups=8), (2, 16), (2, 16, 8, 8)),
    "transposed": (
        Configuration("conv_transpose1d", (16, 8), (True, True), (2, 16, 5), {"stride": [2], "padding": [0], "groups": 2, "kernel": [2]}),
        (8, 4),
        (2, 4, 10),
    ),
    "linear": (Configuration("linear", (16, 24), (True, True), (1, 7, 16)), (8, 16), (2, 7, 16)),
    "attention": (
        Configuration(
            "attention",
            (16, 8),
            (True, True),
            (1, 8, 6, 16),
            {"keys": 9, "key_heads": 2, "value_width": 8, "causal": False, "mask": "bool"},
        ),
        (8, 4),
        (2, 4, 6, 4),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_alone_has_the_shape_it_has_in_the_pruned_model(kind: str, tmp_path: Path) -> None:
    configuration, widths, shape = LAYERS[kind]
    signature, samples = save_program(layer_module(configuration, widths, 3), tmp_path / "layer.pt2")
    outputs = torch.export.load(tmp_path / "layer.pt2").module()(*map(torch.from_numpy, samples))
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    assert {tuple(output.shape) for output in outputs} == {shape}
    assert [spec.shape for spec in signature.outputs] == [(None, *shape[1:])] * len(outputs)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


def project(folder: Path, width: int) -> dict[str, str]:
    """What the steps before have left: the traced model and the collected data."""
    (folder / "model").mkdir()
    (folder / "data" / "calibration").mkdir(parents=True)
    example = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        program = torch.export.export(Net(width).eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    torch.export.save(program, folder / "model" / "model.pt2")
    specs = {"inputs": [("x", [None, 3, 16, 16])], "outputs": [("y", [None, 4])]}
    signature = {key: [{"name": n, "dtype": "float32", "shape": s} for n, s in value] for key, value in specs.items()}
    (folder / "model" / "signature.json").write_text(json.dumps(signature))
    np.save(folder / "data" / "calibration" / "input_0.npy", example.numpy())
    return {name: str(folder / name) for name in ("model", "data")}


def settings(folder: Path, runtime: str, **changes: Any) -> dict[str, Any]:
    return {"runtime": runtime, "precision": "fp32", "threads": 1, "batch": 1, "multiple": 16, "inputs": project(folder, 64)} | changes


@pytest.mark.parametrize(
    ("runtime", "precision"), [("numpy", "fp32"), *(pytest.param("onnxruntime", each, marks=pytest.mark.slow) for each in ("fp32", "int8"))]
)
def test_the_step_times_every_layer_in_the_runtime(runtime: str, precision: str, tmp_path: Path) -> None:
    params = settings(tmp_path, runtime, precision=precision, batch=2, multiple=32)
    table = LatencyTable.from_json(json.loads(json.dumps(latencies(params, tmp_path))))
    assert set(table.layers) == {"stem.weight", "head.weight"}
    assert table.executed_by.startswith(runtime) and (table.threads, table.batch, table.precision) == (1, 2, precision)
    stem = table.points[table.layers["stem.weight"]]
    assert sorted((read, make) for read, make, _ in stem) == [(3, 32), (3, 64)]
    assert table.whole_ms > table.call_ms > 0
    assert len(table.models) == 2 and table.models[1].layers_ms < table.models[0].layers_ms
    program = torch.export.load(tmp_path / "model" / "model.pt2")
    structure = analyse(program)
    cost = table.cost(structure, program)
    removed = np.zeros(structure.unit_count, dtype=bool)
    costs = []
    for unit in (None, *range(0, 48)):
        removed[[] if unit is None else [unit]] = True
        costs.append(cost(removed))
    assert costs[0] == pytest.approx(table.whole_ms)
    assert all(later <= before for before, later in pairwise(costs)) and costs[-1] < costs[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_in_integers_is_timed_in_integers(kind: str, tmp_path: Path) -> None:
    machine = Bench(replace(QUICK, runtime="onnxruntime", scheme=INT8), tmp_path)
    machine.add(layer_module(*LAYERS[kind][:2], 3))
    graph = onnx.load(next(path for path in (tmp_path / "1").rglob("*.onnx")))
    ops = [node.op_type for node in graph.graph.node]
    integers = ops.count("DequantizeLinear") >= 3 or "MatMulIntegerToFloat" in ops
    assert integers == (kind not in ("attention", "grouped"))  # the runtime has no integer kernels for these, or slower ones
    assert machine.window()[0] > 0
    machine.close()


def test_whole_models_lose_even_shares_and_keep_multiples() -> None:
    with torch.no_grad():
        program = torch.export.export(Net(64).eval(), (torch.randn(3, 3, 16, 16),), dynamic_shapes=({0: Dim("batch", min=1)},))
    structure = analyse(program)
    assert [64 - int(removed.sum()) for removed in even_removals(structure, 8)] == [64, 48, 32, 16]
    assert [64 - int(removed.sum()) for removed in even_removals(structure, 32)] == [64, 32]


def test_a_layer_that_a_runtime_lacks_is_named(tmp_path: Path) -> None:
    machine = Bench(QUICK, tmp_path)
    with pytest.raises(MeasurementError, match=r"layer attention 16->8 .* cannot be timed alone in numpy"):
        time_layer(machine, LAYERS["attention"][0], [(16, 8)], QUICK)


def test_a_runtime_whose_time_cannot_be_taken_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "timing_unavailable", lambda self: "it needs another machine")
    with pytest.raises(MeasurementError, match="latency in onnxruntime cannot be taken here: it needs another machine"):
        latencies(settings(tmp_path, "onnxruntime"), tmp_path)
