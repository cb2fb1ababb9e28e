"""`edgepress explain` through the command line: the layer that is to blame is named, and the run is left as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgepress.bundle.digest import digest
from tests.project import SPOILT, digits, edgepress, spoil

Json = dict[str, Any]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a project with one spoilt layer: in static integers, and in float."""
    pytest.importorskip("edgepress_numpy")
    folder = tmp_path_factory.mktemp("explained")
    data = {"train": "data:train", "validation": "data:validation", "slices": {"digit": "labels"}}
    quantize = {"precision": "int8", "scheme": "static"}
    targets = ["numpy", {"numpy:float": {"precision": "fp32"}}]
    recipe = spoil(digits(folder, targets, data=data, compress=[{"quantize": quantize}], gates={"accuracy_drop": {"max": "1.5pp"}}))
    done = edgepress("run", recipe.name, "--out", "run", cwd=folder)
    assert done.returncode == 1, done.stderr
    return folder / "run"


def explained(run: Path, target: str = "numpy", cwd: Path | None = None) -> tuple[Json, str]:
    """What `--json` prints, and what goes to stderr."""
    done = edgepress("explain", run, target, "--json", cwd=cwd or run.parent)
    assert done.returncode == 0, done.stderr
    loaded: Json = json.loads(done.stdout)
    return loaded, done.stderr


def test_the_spoilt_layer_comes_first_once_measured_and_then_stored_and_the_run_stays_as_it_is(finished: Path) -> None:
    before = digest(finished)
    found, progress = explained(finished)
    assert found["why_no_layers"] is None and found["layer_samples"] == 32 and "layers of numpy" in progress
    worst = found["layers"][0]
    assert (worst["layer"], worst["op"]) == (SPOILT, "conv2d") and worst["lost_db"] > 10
    again, progress = explained(finished)
    assert again == found and "layers of numpy" not in progress
    assert digest(finished) == before


def test_slices_are_shown_with_the_one_that_lost_most_first(finished: Path) -> None:
    found, _ = explained(finished)
    drops = [part["drop"] for part in found["slices"]]
    assert len(drops) == 10 and drops == sorted(drops, reverse=True) and drops[0] > 1.5
    printed = " ".join(edgepress("explain", finished, "numpy", cwd=finished.parent).stdout.split())
    worst = found["slices"][0]
    assert f"digit={worst['group']} {worst['samples']} " in printed and f"{SPOILT} conv2d" in printed


def test_a_float_target_has_no_layers_and_says_why(finished: Path) -> None:
    found, progress = explained(finished, "numpy:float")
    assert found["layers"] == [] and "nothing in it was quantized" in found["why_no_layers"] and progress == ""
    assert len(found["slices"]) == 10


def test_without_the_recipe_or_the_store_everything_else_is_shown_and_what_is_missing_named(finished: Path, tmp_path: Path) -> None:
    found, _ = explained(finished, cwd=tmp_path)
    assert "the recipe 'edgepress.yaml' is not here" in found["why_no_layers"] and len(found["slices"]) == 10
    shutil.copytree(finished.parent, tmp_path / "copy", ignore=shutil.ignore_patterns(".edgepress"))
    found, progress = explained(tmp_path / "copy" / "run")
    assert "the store has no result of the step 'data': never run" in found["why_no_layers"] and progress == ""
    assert not (tmp_path / "copy" / ".edgepress").exists()


def test_layers_of_another_artifact_are_not_shown_for_this_one(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    report = json.loads((run / "report.json").read_text())
    report["targets"][0]["artifact"]["sha256"] = "0" * 64
    (run / "report.json").write_text(json.dumps(report))
    found, _ = explained(run, cwd=finished.parent)
    assert found["layers"] == [] and "does not have this run's artifact any more" in found["why_no_layers"]


def test_a_target_that_is_not_there_is_an_error(finished: Path) -> None:
    done = edgepress("explain", finished, "tflite", cwd=finished.parent)
    assert done.returncode == 2 and "'tflite' is not a target" in done.stderr
