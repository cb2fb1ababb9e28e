"""Every failure that this field's tools are known to let through, through the command line: none exits 0.

One test each. The first half runs the digits project on the NumPy target; what one run stored, the next ones find. The second half judges
fabricated reports. A baseline of another machine: `test_baseline.py`; an expired waiver: `test_waivers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from tests import faults
from tests.project import digits, edgepress, report_of, started
from tests.report_sample import failing, gate, lost, not_executable, report, target

Json = dict[str, Any]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a project whose run passes."""
    pytest.importorskip("edgepress_numpy")
    recipe = digits(tmp_path_factory.mktemp("known"), compress=[{"quantize": {"precision": "int8", "scheme": "static"}}])
    done = edgepress("run", recipe, "--out", recipe.parent / "passed")
    assert done.returncode == 0, done.stderr + done.stdout
    return recipe


def run(project: Path, command: Callable[..., CompletedProcess[str]] = edgepress, **changes: Any) -> tuple[int, str, Path]:
    """Run the project with other top-level entries: exit code, everything printed on one line, and the run's folder."""
    changed = project.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(yaml.safe_load(project.read_text()) | changes))
    out = project.parent / "run"
    done = command("run", changed, "--out", out)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split()), out


def test_a_goal_that_is_missed(project: Path) -> None:
    code, printed, _ = run(project, gates={"size": {"max": "1kB"}, "accuracy_drop": {"max": "1.5pp"}})
    assert code == 1 and "FAIL" in printed and "size is" in printed


def test_a_tolerance_that_is_broken(project: Path) -> None:
    code, printed, out = run(project, gates={"sqnr": {"min": "200dB"}, "argmax_agreement": {"min": 0.5}})
    assert code == 1 and "sqnr is" in printed
    assert {g["name"]: g["verdict"] for g in report_of(out)["targets"][0]["gates"]} == {"sqnr": "fail", "argmax_agreement": "pass"}


def test_a_format_that_failed_beside_one_that_passed(project: Path, tmp_path: Path) -> None:
    code, printed, out = run(project, partial(started, **faults.install(tmp_path / "package")), targets=["numpy", "refuses"])
    assert code == 2 and "has no op 'frobnicate'" in printed
    assert [t["status"] for t in report_of(out)["targets"]] == ["validated", "failed"]


def test_a_metric_of_nan(project: Path) -> None:
    text = "import torch\ndef score(outputs, labels):\n    return torch.full((len(labels),), float('nan'))\n"
    project.with_name("nan_metric.py").write_text(text)
    code, printed, _ = run(project, metric="nan_metric:score")
    assert code == 2 and "nan_metric:score" in printed and "nan" in printed


def test_an_unknown_metric(project: Path) -> None:
    code, printed, _ = run(project, metric="acuracy")
    assert code == 2 and "Did you mean 'accuracy'?" in printed


def test_no_gate_selected(project: Path) -> None:
    code, printed, out = run(project, gates={})
    assert code == 2 and "Add `gates:`" in printed
    assert edgepress("gate", out, "--undecided", "pass").returncode == 2


@pytest.mark.slow
def test_no_gate_selected_for_one_target(project: Path) -> None:
    off = {"accuracy_drop": False, "latency_ratio": False, "size": False}
    code, _, out = run(project, targets=["numpy", {"numpy:b": {"gates": off}}])
    assert code == 2
    assert [t["gates"][0]["verdict"] for t in report_of(out)["targets"]] == ["pass", "error"]


def test_an_empty_target_list(project: Path) -> None:
    code, printed, _ = run(project, targets=[])
    assert code == 2 and "no target" in printed


def test_a_stale_cache_after_the_calibration_code_changed(project: Path) -> None:
    """Calibration images a hundred times too bright ruin every static range; results from before the change would pass."""
    data = project.with_name("data.py")
    before = data.read_text()
    data.write_text(before + STALE)
    try:
        code, printed, _ = run(project)
    finally:
        data.write_text(before)
    assert code == 1 and "accuracy_drop is" in printed, printed


STALE = """

_train = train


def train():
    from torch.utils.data import TensorDataset

    images, labels = _train().tensors
    return TensorDataset(images * 100, labels)
"""


@pytest.mark.slow
def test_a_fallback_that_gives_up(project: Path) -> None:
    """Some calibration images are far too bright: every range is ruined, so that no layer may be in integers and one has to be."""
    project.with_name("outliers.py").write_text(OUTLIERS)
    data = {"train": "outliers:train", "validation": "data:validation", "calibration": {"samples": 64, "selection": 64}}
    quantize = {"precision": "int8", "scheme": "static", "observer": "minmax", "fallback": True, "max_drop": "1pp"}
    code, printed, out = run(project, data=data, compress=[{"quantize": quantize}], gates={"accuracy_drop": {"max": "1.5pp"}})
    (target,) = report_of(out)["targets"]
    fallback = target["fallback"]
    assert code == 1 and "accuracy_drop is" in printed and "fallback did not meet max_drop; its best has" in printed, printed
    best = min(fallback["tried"], key=lambda item: item["drop"])
    assert not fallback["met"] and len(fallback["tried"]) > 2
    assert fallback["drop"] == best["drop"] > 1 and len(fallback["layers"]) == best["layers"]
    assert target["scheme"]["label"].startswith("int8 static") and (out / target["artifact"]["path"]).exists()


OUTLIERS = """
from torch.utils.data import TensorDataset

from data import train as clean


def train():
    images, labels = clean().tensors
    images = images.clone()
    images[::20] *= 600
    return TensorDataset(images, labels)
"""


def judged(folder: Path, data: Json, *arguments: str) -> int:
    """Exit code of `edgepress gate` on a fabricated report."""
    (folder / "report.json").write_text(json.dumps(data))
    done = edgepress("gate", folder, *arguments)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    return done.returncode


FALLBACK: Json = {"scheme": "int8 static", "layers": ["a", "b"], "met": False, "drop": 1.2, "tried": [{"layers": 2, "drop": 1.2}]}
ACCURACY = gate(
    "accuracy_drop", "at most 1.00 pp", "1.20 pp (0.80 pp to 1.60 pp)", "undecided", interval=[0.8, 1.6], next_step="Collect more."
)
REPORTS: dict[str, tuple[Json, int]] = {
    "goal missed": (report(target("onnxruntime"), failing("tflite")), 1),
    "format failed": (report(target("onnxruntime"), lost("tflite")), 2),
    "format skipped as unsupported": (report(target("onnxruntime"), lost("tensorrt", "unsupported")), 2),
    "metric NaN": (
        report(target("onnxruntime", metric={"value": float("nan"), "drop": float("nan"), "interval": [0, 1], "samples": 9})),
        2,
    ),
    "measurement failed": (report(target("a", gates=[gate("accuracy_drop", "at most 1.00 pp", "accuracy_drop is nan", "error")])), 2),
    "no gate": (report(target("onnxruntime", gates=[])), 2),
    "no gate of one target": (report(target("onnxruntime"), target("tflite", gates=[])), 2),
    "empty target list": ({**report(), "targets": [], "verdict": "pass"}, 2),
    "tolerance breach": (report(target("a", gates=[gate("sqnr", "at least 20.00 dB", "11.20 dB", "fail")])), 1),
    "fallback exhausted and failed": (report(failing("tflite") | {"fallback": FALLBACK}), 1),
    "fallback exhausted and undecided": (report(target("a", gates=[ACCURACY], fallback=FALLBACK)), 3),
    "latency not measured": (report(not_executable("coreml", "undecided")), 3),
}


@pytest.mark.parametrize("failure", REPORTS)
def test_gate_does_not_pass(failure: str, tmp_path: Path) -> None:
    data, code = REPORTS[failure]
    assert judged(tmp_path, data) == code


def test_no_policy_for_undecided_lets_anything_else_through(tmp_path: Path) -> None:
    assert judged(tmp_path, report(not_executable("coreml", "undecided"), failing("tflite")), "--undecided", "pass") == 1
    assert judged(tmp_path, report(not_executable("coreml", "undecided"), lost("tflite")), "--undecided", "pass") == 2
