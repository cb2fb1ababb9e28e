"""report.json, junit.xml and summary.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgepress.report import numbers
from edgepress.report.junit import render_junit
from edgepress.report.present import headline, target_verdict
from edgepress.report.schema import load_schema
from edgepress.report.summary import render_summary
from edgepress.report.write import dump, write_report
from edgepress.targets.errors import MeasurementError
from tests.report_sample import SHA, failing, gate, lost, not_executable, report, target

VALIDATOR = Draft202012Validator(load_schema("report.v1"))

texts = st.text(max_size=40)
finite = st.floats(-1e6, 1e6)
intervals = st.tuples(finite, finite).map(sorted)
gates = st.builds(
    gate,
    st.sampled_from(["accuracy_drop", "latency_ratio", "size", "peak_memory", "latency_p95"]),
    st.one_of(texts, st.sampled_from(["at most 1.00 pp", "at least 0.9", "2MB", "at most 5 ms"])),
    texts,
    st.sampled_from(["pass", "fail", "undecided", "accepted", "error"]),
    interval=st.none() | intervals,
    next_step=texts.filter(bool),
)
validated = st.builds(
    target,
    st.text(min_size=1, max_size=30),
    device=texts,
    gates=st.lists(gates, max_size=5),
    metric=st.builds(lambda v, d, i: {"value": v, "drop": d, "interval": i, "samples": 100}, finite, finite, intervals),
    artifact=st.builds(lambda n: {"path": "bundle/a/b", "sha256": SHA, "size_bytes": n}, st.integers(0, 10**12)),
    latency_ratio=st.none() | st.builds(lambda v, i: {"value": v, "interval": i, "reference": "x"}, st.floats(0, 1e5), intervals),
    integer_share_of_macs=st.none() | st.floats(0, 1),
    float_ops=st.lists(st.builds(lambda o, r: {"op": o, "count": 1, "reason": r}, texts, texts), max_size=3),
)
others = st.builds(lost, st.text(min_size=1, max_size=30), st.sampled_from(["failed", "unsupported"]))
reports = st.builds(lambda targets, project: report(*targets, project=project), st.lists(validated | others, min_size=1, max_size=6), texts)


def errors(data: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_the_sample_with_every_kind_of_target_follows_the_schema() -> None:
    data = report()
    assert errors(data) == []
    assert {target_verdict(item) for item in data["targets"]} == {"pass", "accepted", "undecided", "fail", "error"}


@given(reports)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_follows_the_schema_and_renders_everywhere(data: dict[str, Any]) -> None:
    from edgepress.report.html import render_html

    assert errors(json.loads(dump(data))) == []
    suites = xml.fromstring(render_junit(data).encode())
    assert len(suites) == len(data["targets"])
    assert render_summary(data).count("\n| ") == len(data["targets"]) + 2
    assert "</html>" in render_html(data)


def broken(change: str) -> dict[str, Any]:
    data = report(target("onnxruntime"), lost("tflite"))
    good, bad = data["targets"]
    changes = {
        "unknown schema": lambda: data.update(schema="edgepress/report/v2"),
        "accepted is no run verdict": lambda: data.update(verdict="accepted"),
        "failed without an error": lambda: bad.update(error=None),
        "validated without kernels": lambda: good.update(kernels=None),
        "validated without executed_by": lambda: good.update(executed_by=None),
        "validated with an error": lambda: good.update(error="x"),
        "undecided without a next step": lambda: good["gates"].append(gate("size", "2MB", "", "undecided")),
        "p99 from too few samples": lambda: good["latency_ms"].update(p99=1.0, samples=661),
        "p90 from too few samples": lambda: good["latency_ms"].update(p90=1.0, samples=63),
        "absolute path": lambda: good["artifact"].update(path="/etc/passwd"),
        "path out of the run": lambda: good["artifact"].update(path="bundle/../../x"),
        "no stages": lambda: data.pop("stages"),
        "short hash": lambda: good["artifact"].update(sha256="abc"),
        "interval of three": lambda: good["metric"].update(interval=[0, 1, 2]),
        "text where a number is": lambda: good["metric"].update(drop="0.1"),
    }
    changes[change]()
    return data


@pytest.mark.parametrize(
    "change",
    [
        "unknown schema",
        "accepted is no run verdict",
        "failed without an error",
        "validated without kernels",
        "validated without executed_by",
        "validated with an error",
        "undecided without a next step",
        "p99 from too few samples",
        "p90 from too few samples",
        "absolute path",
        "path out of the run",
        "no stages",
        "short hash",
        "interval of three",
        "text where a number is",
    ],
)
def test_the_schema_refuses(change: str) -> None:
    assert errors(broken(change))


def test_fields_may_be_added() -> None:
    assert errors(report(target("onnxruntime", something_new={"a": 1}), also_new=[])) == []


def test_writes_four_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_report(tmp_path / "run", report())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["junit.xml", "report.html", "report.json", "summary.md"]
    assert json.loads((tmp_path / "run/report.json").read_text("utf-8")) == report()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    data = report(target("a"), target("b", parity={"max_abs_error": 0.1, "sqnr_db": value, "argmax_agreement": 1.0}))
    with pytest.raises(MeasurementError, match=r"report\.targets\[1\]\.parity\.sqnr_db"):
        write_report(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def suites(data: dict[str, Any], **options: Any) -> dict[str, xml.Element]:
    return {suite.get("name", ""): suite for suite in xml.fromstring(render_junit(data, **options).encode())}


def test_junit_has_a_suite_per_target_and_a_case_per_gate() -> None:
    found = suites(report())
    assert set(found) == {"onnxruntime", "tensorrt", "coreml", "tflite", "openvino"}
    assert [case.get("name") for case in found["tflite"].findall("testcase")] == ["accuracy_drop", "latency_ratio", "size"]
    failure = found["tflite"].find("testcase/failure")
    assert failure is not None and failure.get("type") == "fail"
    for fact in ("1.69 pp", "at most 1.00 pp", "1.3100 to 2.0800", "next step: Run `edgepress explain`", "executed by: onnxruntime"):
        assert fact in (failure.text or "")


def test_junit_counts_what_it_holds() -> None:
    root = xml.fromstring(render_junit(report()).encode())
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("11", "2", "1")
    for suite in root:
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "testcase/failure"),
            ("errors", "testcase/error"),
            ("skipped", "testcase/skipped"),
        ):
            assert suite.get(attribute) == str(len(suite.findall(tag)))


def test_junit_keeps_the_order_and_names_of_the_xunit2_schema() -> None:
    allowed = {
        "testsuites": {"name", "time", "tests", "failures", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        "testcase": {"name", "classname", "time"},
        "property": {"name", "value"},
    }
    for element in xml.fromstring(render_junit(report()).encode()).iter():
        assert set(element.attrib) <= allowed.get(element.tag, {"message", "type"})
        if element.tag == "testsuite":
            assert [child.tag for child in element] == ["properties"] + ["testcase"] * (len(element) - 1)


@pytest.mark.parametrize(("policy", "tag"), [("fail", "failure"), ("warn", "skipped"), ("pass", "skipped")])
def test_an_undecided_gate_counts_as_the_policy_says(policy: str, tag: str) -> None:
    found = suites(report(not_executable("coreml", "undecided")), undecided=policy)["coreml"].find(f"testcase/{tag}")
    assert found is not None and found.get("type") == "undecided"


def test_an_accepted_gate_is_never_a_passed_case() -> None:
    case = suites(report(not_executable("tensorrt", "accepted")))["tensorrt"].findall("testcase")[1]
    assert case.find("skipped") is not None


def test_a_lost_target_is_an_error_case() -> None:
    error = suites(report(lost("tflite")))["tflite"].find("testcase/error")
    assert error is not None and "SIGKILL" in (error.get("message") or "")


def test_junit_survives_characters_xml_cannot_carry() -> None:
    data = report(target("a\x00\x1b[31m<&>", gates=[gate("size\ud800", "]]>", "\x07", "fail")]))
    assert len(xml.fromstring(render_junit(data).encode())) == 1


def test_summary_escapes_what_markdown_would_read() -> None:
    text = render_summary(report(target("a|b"), lost("x"), project="<script>alert(1)</script>\n# h"))
    assert "a\\|b" in text and "<script>" not in text and "\n# h" not in text


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([target("a"), target("b")], ["2 targets hold 6 gates"]),
        ([target("a"), not_executable("tensorrt", "accepted")], ["latency_ratio (tensorrt)", "Not measured on this machine"]),
        ([target("a"), failing("tflite")], ["tflite: accuracy_drop is 1.69 pp", "limit: at most 1.00 pp"]),
        ([not_executable("coreml", "undecided"), target("a")], ["coreml: latency_ratio is not measured"]),
        ([failing("tflite"), lost("openvino")], ["Target 'openvino' could not be exported"]),
        ([target("a", gates=[gate("size", "2MB", "cannot be read", "error")])], ["a could not be judged: size is cannot be read"]),
    ],
)
def test_the_headline_says_why(targets: list[dict[str, Any]], words: list[str]) -> None:
    sentence = headline(report(*targets))
    assert all(word in sentence for word in words) and sentence.endswith(".")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("at most 1.00 pp", 1.0),
        ("2MB", 2e6),
        ("at most 1.5 MiB", 1.5 * 2**20),
        ("at most 5 ms", 0.005),
        ("80%", 0.8),
        ("0.8", 0.8),
        ("none", None),
    ],
)
def test_the_number_of_a_limit_is_read_from_its_text(text: str, value: float | None) -> None:
    assert numbers.limit(text) == (None if value is None else pytest.approx(value))


def test_conditions_are_said_as_far_as_they_are_known() -> None:
    found = {"cores": [0, 1], "mhz": [1200.0, 2445.0], "governor": "powersave", "others": 0.031}
    assert numbers.conditions(found) == "on cores 0, 1, at 1200 to 2445 MHz, governor powersave, other work took 3 % of the machine"
    assert numbers.conditions({"cores": [], "mhz": None, "governor": None, "others": 0.5}) == "other work took 50 % of the machine"


def test_numbers_show_no_negative_zero() -> None:
    assert numbers.drop(-0.001) == "0.00 pp" and numbers.interval([-0.0001, 0.5]) == "0.00 to 0.50"
