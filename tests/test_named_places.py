"""What commands take for a run, a target or an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepress.commands import bundle as commands
from edgepress.report.write import write_report
from edgepress.targets.errors import EdgepressError
from tests.project import edgepress
from tests.report_sample import report, target


@pytest.fixture
def latest(tmp_path: Path) -> Path:
    """A folder with a run that is the newest."""
    write_report(tmp_path / "runs" / "1", report(target("tflite")))
    (tmp_path / "runs" / "latest").symlink_to("1")
    return tmp_path


def test_explain_takes_the_newest_run_where_none_is_named(latest: Path) -> None:
    for arguments in (["tflite"], ["runs/1", "tflite"]):
        done = edgepress("explain", *arguments, "--json", cwd=latest)
        assert done.returncode == 0 and json.loads(done.stdout)["target"] == "tflite"
    done = edgepress("explain", "runs/1", cwd=latest)
    assert done.returncode == 2 and "'runs/1' is not a target of runs/latest. runs/latest has tflite." in done.stderr
    done = edgepress("explain", cwd=latest)
    assert done.returncode == 2 and "explain needs the name of a target. runs/latest has tflite." in done.stderr


def test_accept_takes_the_newest_run_where_none_is_named(latest: Path) -> None:
    done = edgepress("baseline", "accept", "--reason", "x", "--file", "b.yaml", "--by", "me", cwd=latest)
    assert "the run has no hash of the validation data of 'tflite'" in done.stderr  # it was read


@pytest.fixture
def made(tmp_path: Path) -> Path:
    entries: list[dict[str, Any]] = [
        {"target": "tflite:io8", "folder": "tflite-io8", "path": "model.tflite", "runtime": "litert", "artifact": {"of": "io8"}},
        {"target": "openvino", "folder": "openvino", "path": "model", "runtime": "openvino", "artifact": {"of": "openvino"}},
    ]
    bundle = tmp_path / "run" / "bundle"
    for entry in entries:
        (bundle / entry["folder"]).mkdir(parents=True)
    (bundle / "bundle.json").write_text(json.dumps({"artifacts": entries}))
    return bundle


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("tflite-io8", "io8"),
        ("tflite:io8", "io8"),
        ("tflite-io8/model.tflite", "io8"),
        ("openvino", "openvino"),
        ("openvino/model", "openvino"),
        ("openvino/model/model.xml", "openvino"),
    ],
)
def test_bench_takes_a_folder_a_target_and_an_artifact(made: Path, name: str, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.parent)
    found = commands._entry(Path("bundle") / name)
    assert found["artifact"] == {"of": of} and found["folder"] == str(made / {"io8": "tflite-io8"}.get(of, of))


@pytest.mark.parametrize("name", ["tflite", "tflite-io8/golden_inputs.npz"])
def test_bench_names_what_the_bundle_has_where_it_has_not_that(made: Path, name: str) -> None:
    with pytest.raises(EdgepressError, match=rf"{name}' is no artifact of its bundle\. It has tflite-io8/model\.tflite, openvino/model\."):
        commands._entry(made / name)
    with pytest.raises(EdgepressError, match="no folder above it has a"):
        commands._entry(made)
