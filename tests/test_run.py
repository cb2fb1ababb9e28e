"""`edgepress run` end to end, on the digits project and the NumPy target: results, repetition, and what a change re-runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from edgepress.bundle.digest import digest
from tests.project import digits, edgepress, report_of, started

SCHEMA = Path(__file__).parent.parent / "edgepress" / "report" / "schema" / "report.v1.json"


@pytest.fixture(scope="module", autouse=True)
def stored_beside_the_recipe() -> Iterator[None]:
    """These runs find nothing of other modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EDGEPRESS_STORE")
        yield


@pytest.fixture(scope="module")
def finished(stored_beside_the_recipe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `<project>/run`; tests that change the project copy it first."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = digits(folder / "project")
    done = started("run", recipe, "--out", recipe.parent / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    return recipe.parent


@pytest.fixture
def store(finished: Path) -> dict[str, str]:
    return {"EDGEPRESS_STORE": str(finished / ".edgepress" / "store")}


def planned(recipe: Path, store: dict[str, str]) -> dict[str, dict[str, Any]]:
    done = edgepress("plan", recipe, "--json", **store)
    assert done.returncode == 0, done.stderr
    return {step["name"]: step for step in json.loads(done.stdout)}


def test_a_run_leaves_a_valid_report_a_bundle_and_a_log(finished: Path) -> None:
    report = report_of(finished / "run")
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    target = report["targets"][0]
    assert report["command"].endswith(f"edgepress.yaml --out {finished / 'run'}")
    assert report["verdict"] == "pass" and target["status"] == "validated"
    assert target["executed_by"].startswith("numpy ")
    assert target["scheme"]["kind"] == "static" and target["tried"][0]["held"]
    assert target["metric"]["samples"] == report["reference"]["metric"]["samples"] == 900
    assert digest(finished / "run" / target["artifact"]["path"]) == target["artifact"]["sha256"]
    for name in ("report.html", "junit.xml", "summary.md", "log.txt", "bundle/numpy/run.py", "bundle/numpy/golden_inputs.npz"):
        assert (finished / "run" / name).is_file(), name


def test_quantized_outputs_match_the_quantized_pytorch_model(finished: Path) -> None:
    parity = report_of(finished / "run")["targets"][0]["parity"]
    assert parity["against"] == "quantized PyTorch model"
    assert parity["argmax_agreement"] > 0.99 and parity["sqnr_db"] > 25


def test_an_unchanged_run_executes_nothing_and_repeats_the_bundle_to_the_byte(finished: Path) -> None:
    again = edgepress("run", finished / "edgepress.yaml", "--out", finished / "again")
    assert again.returncode == 0, again.stderr
    assert "done" not in again.stderr and "unchanged" in again.stderr
    assert digest(finished / "again" / "bundle") == digest(finished / "run" / "bundle")
    assert all(stage["cached"] for stage in report_of(finished / "again")["stages"])


def test_the_peak_of_the_machine_is_measured_once_and_the_latency_held_against_it(finished: Path, store: dict[str, str]) -> None:
    target = report_of(finished / "run")["targets"][0]
    distance = target["peak_distance"]
    assert distance["macs"] == report_of(finished / "run")["stages"][-1]["macs"]
    assert distance["value"] == pytest.approx(target["latency_ms"]["p50"] / distance["shortest_ms"])
    assert distance["int8_macs_per_s"] > 0 and distance["fp32_macs_per_s"] > 0
    assert "off this machine's" in (finished / "run" / "report.html").read_text().replace("&#39;", "'")
    other = finished / "other.yaml"
    content = yaml.safe_load((finished / "edgepress.yaml").read_text())
    content["compress"] = [{"quantize": {"precision": "int8", "observer": "minmax"}}]
    other.write_text(yaml.safe_dump(content))
    assert planned(other, store)["peak of this machine (1 thread)"]["cached"]


def test_other_gate_limits_judge_again_without_measuring_again(finished: Path) -> None:
    recipe = finished / "edgepress.yaml"
    changed = recipe.with_name("strict.yaml")
    content = yaml.safe_load(recipe.read_text())
    content["gates"] = {"accuracy_drop": {"max": "1.4pp"}, "size": {"max": "1kB"}}
    changed.write_text(yaml.safe_dump(content))
    done = edgepress("run", changed, "--out", finished / "strict")
    assert done.returncode == 1, done.stderr
    assert "done" not in done.stderr
    verdicts = {gate["name"]: gate["verdict"] for gate in report_of(finished / "strict")["targets"][0]["gates"]}
    assert verdicts == {"accuracy_drop": "pass", "size": "fail"}


def comment(name: str) -> Callable[[Path], None]:
    return lambda project: (project / name).write_text((project / name).read_text() + "\n# changed\n") and None


def retrained(project: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = project / "digits.safetensors"
    save_file(load_file(path) | {"classifier.bias": np.zeros(10, np.float32)}, path)


@pytest.mark.parametrize(
    ("change", "first", "why"),
    [
        (comment("data.py"), "data", "data.py changed"),
        (comment("model.py"), "model", "model.py changed"),
        (retrained, "model", "digits.safetensors changed"),
    ],
    ids=["data.py", "model.py", "checkpoint"],
)
def test_plan_names_what_changed_and_the_first_step_that_has_to_run(
    finished: Path, change: Callable[[Path], None], first: str, why: str
) -> None:
    store = {"EDGEPRESS_STORE": str(finished / ".edgepress" / "store")}
    saved = {name: (finished / name).read_bytes() for name in ("data.py", "model.py", "digits.safetensors")}
    try:
        change(finished)
        steps = planned(finished / "edgepress.yaml", store)
    finally:
        for name, content in saved.items():
            (finished / name).write_bytes(content)
    assert steps[first]["why"] == why
    earlier = list(steps)[: list(steps).index(first)]
    assert all(steps[name]["cached"] for name in earlier)
    assert not steps["export numpy int8 static"]["cached"]


def test_plan_says_that_another_observer_calibrates_again_and_nothing_before_that(finished: Path, store: dict[str, str]) -> None:
    changed = finished / "minmax.yaml"
    content = yaml.safe_load((finished / "edgepress.yaml").read_text())
    content["compress"] = [{"quantize": {"precision": "int8", "observer": "minmax"}}]
    changed.write_text(yaml.safe_dump(content))
    steps = planned(changed, store)
    assert {name: steps[name]["cached"] for name in ("data", "model", "reference", "calibrate")} == {
        "data": True,
        "model": True,
        "reference": True,
        "calibrate": False,
    }


def test_a_damaged_store_is_noticed_and_made_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("run", "again", "strict"))
    store = tmp_path / "copy" / ".edgepress" / "store"
    victim = next(store.glob("objects/*/files/artifact/model.npz"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    plan = planned(finished / "edgepress.yaml", {"EDGEPRESS_STORE": str(store)})
    assert any("was damaged" in step["why"] for step in plan.values())


def test_a_run_over_something_that_is_not_a_run_is_refused_and_nothing_is_lost(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    done = edgepress("run", finished / "edgepress.yaml", "--out", tmp_path)
    assert done.returncode == 2
    assert "is not a run" in done.stderr and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_gate_judges_a_report_again_and_an_edited_verdict_does_not_help(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    assert edgepress("gate", tmp_path / "run").returncode == 0
    report = report_of(tmp_path / "run")
    report["targets"][0]["gates"][0]["verdict"] = "fail"
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    assert edgepress("gate", tmp_path / "run").returncode == 1


@pytest.mark.parametrize(("policy", "code"), [(None, 3), ("fail", 1), ("warn", 0), ("pass", 0)])
def test_gate_exits_as_the_policy_for_undecided_says(finished: Path, tmp_path: Path, policy: str | None, code: int) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    report = report_of(tmp_path / "run")
    report["targets"][0]["gates"][0] |= {"verdict": "undecided", "next_step": "Collect more."}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    assert edgepress("gate", tmp_path / "run", *(["--undecided", policy] if policy else [])).returncode == code


def test_a_release_is_accepted_and_held_to_beside_its_own_artifact_as_long_as_that_is_there(finished: Path, tmp_path: Path) -> None:
    recipe, file = finished / "release.yaml", finished / "edgepress-baseline.yaml"
    content = yaml.safe_load(recipe.with_name("edgepress.yaml").read_text())
    # how fast the machine is at the moment decides no test
    content["gates"]["against_baseline"] = {"accuracy_drop": "20pp", "latency_ratio": 1000, "size": 1.02, "peak_memory": 1000}
    recipe.write_text(yaml.safe_dump(content))

    def against(*options: str | Path) -> tuple[int, dict[str, str]]:
        done = edgepress("run", recipe, "--out", tmp_path / "new", *options)
        gates = report_of(tmp_path / "new")["targets"][0]["gates"]
        return done.returncode, {gate["name"]: gate["observed"] for gate in gates if gate["name"].startswith("baseline.")}

    code, observed = against()
    assert code == 3 and all("there is no baseline" in text for text in observed.values())
    shutil.copytree(tmp_path / "new", tmp_path / "accepted")
    assert edgepress("baseline", "accept", tmp_path / "accepted", "--reason", "first", "--file", file).returncode == 0
    code, observed = against()
    assert code == 0 and "beside the baseline's own artifact" in observed["baseline.latency_ratio"]
    assert "paired" in observed["baseline.accuracy_drop"]
    jsonschema.validate(report_of(tmp_path / "new"), json.loads(SCHEMA.read_text()))
    (tmp_path / "accepted").rename(tmp_path / "archive")
    code, observed = against()
    assert code == 0 and "ratio of the two ratios" in observed["baseline.latency_ratio"]
    code, observed = against("--baseline-artifacts", tmp_path / "archive")
    assert code == 0 and "beside the baseline's own artifact" in observed["baseline.latency_ratio"]
    assert edgepress("gate", tmp_path / "new", "--baseline", file).returncode == 0
    file.write_text(file.read_text().replace("batch: 1", "batch: 2"))
    assert edgepress("run", recipe, "--out", tmp_path / "new").returncode == 2
