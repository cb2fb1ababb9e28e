"""`edgepress check`: everything wrong with a recipe, with file and line, and the gates nobody could decide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepress.check import RULES, check
from edgepress.machine import fingerprint
from edgepress.report.findings import Finding
from edgepress.report.sarif import render_sarif
from tests.project import digits, edgepress
from tests.test_ci_outputs import SARIF

RECIPE = """\
project: x
model: {factory: model:digit_net, checkpoint: digits.safetensors}
data: {train: data:train, validation: data:validation, calibrationn: {}}
metric: accuracy
compress:
  - quantize: {precision: int9}
targets:
  - nunpy
  - numyp
  - numpy: {gates: {accuracy_dropp: off, size: {max: 2}}}
gates:
  size: {max: 2}
gate: 1
"""


def found_in(folder: Path, text: str) -> list[Finding]:
    path = folder / "edgepress.yaml"
    path.write_text(text)
    return list(check(path).findings)


def test_every_mistake_is_found_at_once_in_the_order_and_with_the_names_of_the_file(tmp_path: Path) -> None:
    found = [(f.line, f.rule, f.summary.split(":")[0]) for f in found_in(tmp_path, RECIPE)]
    assert found == [
        (3, "recipe/unknown-key", "data.calibrationn"),
        (6, "recipe/invalid", "compress[0].quantize.precision"),
        (8, "recipe/invalid", "targets[0]"),
        (9, "recipe/invalid", "targets[1]"),
        (10, "recipe/unknown-key", "targets[2].numpy.gates.accuracy_dropp"),
        (10, "recipe/invalid", "targets[2].numpy.gates.size.max"),
        (12, "recipe/invalid", "gates.size.max"),
        (13, "recipe/unknown-key", "gate"),
    ]


def test_a_checkpoint_that_is_not_there_is_found(tmp_path: Path) -> None:
    recipe = digits(tmp_path)
    recipe.with_name("digits.safetensors").unlink()
    (found,) = (finding for finding in check(recipe).findings if finding.level == "error")
    line = next(i for i, text in enumerate(recipe.read_text().splitlines(), start=1) if "checkpoint:" in text)
    assert (found.rule, found.line) == ("recipe/no-file", line) and "digits.safetensors' does not exist" in found.summary
    assert edgepress("check", recipe).returncode == 2


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("project: [", "recipe/unreadable", 1),
        ("project: x\n\tmodel: y\n", "recipe/unreadable", 2),
        ("", "recipe/unreadable", None),
        ("project: a\nproject: b\n", "recipe/unreadable", 2),
        ("project: x\n", "recipe/invalid", 1),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_finding(text: str, rule: str, line: int | None, tmp_path: Path) -> None:
    (finding,) = found_in(tmp_path, text)
    assert (finding.rule, finding.line) == (rule, line)


def test_a_missing_recipe_is_a_finding_and_exit_two(tmp_path: Path) -> None:
    done = edgepress("check", "nowhere.yaml", "--sarif", "out/x.sarif", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere.yaml" in done.stdout and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "out/x.sarif").read_text())["runs"][0]["results"][0]["ruleId"] == "recipe/unreadable"


def test_gates_that_no_run_decides_are_named_where_they_stand(tmp_path: Path) -> None:
    recipe = digits(
        tmp_path / "p",
        [
            {"coreml": {"gates": {"latency_ratio": {"max": 0.8}}}},
            {"coreml:b": {"unmeasured": {"latency": "accept"}, "gates": {"latency_ratio": {"max": 0.8}}}},
            "numpy",
            "numpy:b",
        ],
        gates={"latency_p95": {"max": "5ms"}, "latency_p50": {"max": "5ms", "machine": fingerprint()}},
    )
    found = {f.key: f for f in check(recipe).findings}
    assert ("coreml", "latency_ratio") in found and ("coreml:b", "latency_ratio") not in found
    assert ("numpy", "latency_p95") in found and ("numpy", "latency_p50") not in found
    assert found["numpy", "latency_p95"].level == "warning"
    assert "latency_p95" in recipe.read_text().splitlines()[(found["numpy", "latency_p95"].line or 0) - 1]


def test_a_target_without_a_gate_is_found_and_annotated(tmp_path: Path) -> None:
    recipe = digits(tmp_path / "p", gates={})
    done = edgepress("check", recipe, "--github")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "recipe/no-gate" in done.stdout and "\n::error file=" in done.stdout


def test_a_gate_that_cannot_be_decided_exits_with_three(tmp_path: Path) -> None:
    done = edgepress("check", digits(tmp_path / "p", gates={"latency_p95": {"max": "5ms"}}), "--github")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "\n::warning file=" in done.stdout and "recipe/undecidable" in done.stdout


def test_an_unknown_metric_is_found(tmp_path: Path) -> None:
    (finding,) = check(digits(tmp_path / "p", metric="acuracy")).findings
    assert finding.verdict == "error" and "accuracy" in finding.summary


def test_what_earlier_runs_stored_shows_margins_too_fine_and_patterns_that_match_nothing(tmp_path: Path) -> None:
    """Only data and model are stored here: what a run does first."""
    from edgepress.config import load, recipe
    from edgepress.engine import open_store
    from edgepress.live import Live
    from edgepress.pipeline import Pipeline
    from edgepress.step import Runner

    path = digits(tmp_path / "p", gates={"accuracy_drop": {"max": "0.1pp"}})
    assert check(path).unchecked == ("how many samples decide accuracy gates: no earlier run is stored",)
    config = load(path)
    with Live() as live:
        runner = Runner(open_store(config), live, tmp_path / "log.txt")
        (tmp_path / "log.txt").touch()
        Pipeline(config, recipe(config), runner).prepare()
    steps = "compress:\n- prune: {speedup: 1.5, ignore: ['classifier', 'stemm*']}\n"
    path.write_text(path.read_text().replace("compress:\n", steps))
    checked = check(path)
    found = {f.rule: f for f in checked.findings}
    assert set(found) == {"recipe/undecidable", "recipe/no-match"} and len(checked.findings) == 2
    assert "900 validation samples" in found["recipe/undecidable"].summary
    assert "compress[0].prune.ignore[1]: no layer matches 'stemm*'" in found["recipe/no-match"].summary
    assert checked.unchecked == ()


def test_the_sarif_file_is_valid_and_each_result_has_file_line_rule_and_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    findings = found_in(tmp_path, RECIPE)
    log = json.loads(render_sarif(findings, RULES, ["patterns of layers: no earlier run is stored"]))
    assert list(SARIF.iter_errors(log)) == []
    run = log["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] >= 1
    assert len({result["partialFingerprints"]["edgepressFinding/v1"] for result in run["results"]}) == len(findings)


def test_a_sound_recipe_has_no_finding(tmp_path: Path) -> None:
    done = edgepress("check", digits(tmp_path / "p"))
    assert done.returncode == 0 and "nothing found" in done.stdout


def test_a_gate_is_placed_on_the_targets_own_line_else_on_that_for_all(tmp_path: Path) -> None:
    from edgepress.config import load
    from edgepress.config_places import gate_line, target_line

    recipe = tmp_path / "edgepress.yaml"
    recipe.write_text(PLACED)
    config = load(recipe)
    assert [target_line(config, name) for name in ("openvino", "tflite")] == [6, 7]
    assert [gate_line(config, "tflite", name) for name in ("size", "accuracy_drop", "gates")] == [9, 11, 10]
    assert gate_line(config, "openvino", "size") == 12


PLACED = """\
project: x
model: {factory: model:digit_net, checkpoint: digits.safetensors}
data: {train: data:train, validation: data:validation}
metric: accuracy
targets:
  - openvino
  - tflite:
      gates:
        size: {max: 2MB}
gates:
  accuracy_drop: {max: 1pp}
  size: {max: 1MB}
"""
