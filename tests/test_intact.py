"""`edgepress gate` against report.json as people and accidents leave it: what does not hold together never exits 0."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgepress.cli import app
from edgepress.report.intact import faults
from edgepress.report.schema import load_schema
from edgepress.report.schema.follow import violations
from edgepress.report.write import dump
from edgepress.targets.errors import EdgepressError
from tests.report_sample import failing, gate, not_executable, report, target
from tests.test_report import reports

SCHEMA = load_schema("report.v1")
#: The keywords that `follow` checks, and those that say nothing about a value.
CHECKED = {"$ref", "type", "const", "enum", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "required", "properties", "pattern"}
CHECKED |= {"additionalProperties", "minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength"}
CHECKED |= {"minimum", "maximum", "exclusiveMinimum"}
NOTES = {"$schema", "$id", "$defs", "title", "description", "format"}


def sound() -> dict[str, Any]:
    """Two targets that hold everything; the latency of the second was accepted."""
    return report(target("onnxruntime"), not_executable("tensorrt", "accepted"))


def judged(folder: Path, text: str) -> tuple[int, str]:
    """Exit code of `edgepress gate` on this report.json, and the error."""
    (folder / "report.json").write_text(text, "utf-8")
    try:
        return int(app(["gate", str(folder)], standalone_mode=False)), ""
    except EdgepressError as error:
        return 2, str(error)


Edit = Callable[[dict[str, Any]], Any]
EDITS: dict[str, tuple[Edit, str]] = {
    "the run's verdict alone was made better": (lambda r: r.update(targets=[failing("tflite")]), "tflite"),
    "a failed gate was set to pass": (
        lambda r: r["targets"][0]["gates"][0].update(observed="1.69 pp (1.31 pp to 2.08 pp)", interval=[1.31, 2.08]),
        "accuracy_drop of 'onnxruntime' passed",
    ),
    "a gate passed with its interval across the limit": (
        lambda r: r["targets"][0]["gates"][0].update(interval=[-0.05, 1.2]),
        "is not at most 1.00 pp",
    ),
    "a size over its limit": (lambda r: r["targets"][0]["gates"][2].update(observed="2.10 MB"), "is not at most 2.00 MB"),
    "a gate passed that was not measured": (
        lambda r: r["targets"][0]["gates"][0].update(observed="not measured", interval=None),
        "compared",
    ),
    "a gate passed without its measurement": (lambda r: r["targets"][0].update(latency_ratio=None), "latency_ratio was not measured"),
    "exported, never scored": (lambda r: r["targets"][0].update(status="exported", metric=None), "metric was not measured"),
    "validated without a metric": (lambda r: r["targets"][0].update(metric=None), "targets[0].metric"),
    "accepted by nobody": (lambda r: r["targets"][1].update(unmeasured={}), "accepts nothing"),
    "the gates say better than the run": (lambda r: r.update(verdict="fail"), "amount to pass"),
    "one of two targets has no gate": (lambda r: r["targets"][1].update(gates=[]), ""),
    "no target": (lambda r: r.update(targets=[]), ""),
    "a failed target among passing ones": (lambda r: r["targets"][0].update(status="failed", error="crash"), ""),
    "a failed target without an error": (lambda r: r["targets"][0].update(status="failed"), "targets[0].error"),
    "an unknown status": (lambda r: r["targets"][0].update(status="ok"), "status"),
    "an unknown verdict of a gate": (lambda r: r["targets"][0]["gates"][0].update(verdict="passed"), "'passed'"),
    "an unknown verdict of the run": (lambda r: r.update(verdict="green"), "'green'"),
    "a gate without a verdict": (lambda r: r["targets"][0]["gates"][0].pop("verdict"), "has no 'verdict'"),
    "gates are no list": (lambda r: r["targets"][0].update(gates={}), "gates"),
    "targets are no list": (lambda r: r.update(targets={"a": 1}), "targets"),
    "no environment": (lambda r: r.pop("environment"), "environment"),
    "no reference": (lambda r: r.pop("reference"), "reference"),
    "another schema": (lambda r: r.update(schema="edgepress/report/v2"), "edgepress/report/v2"),
    "no schema": (lambda r: r.pop("schema"), "None"),
    "text where a number is": (lambda r: r["targets"][0]["metric"].update(drop="0"), "metric.drop"),
    "a target twice": (lambda r: r["targets"][1].update(name="onnxruntime"), "two targets"),
}


def test_a_sound_report_passes(tmp_path: Path) -> None:
    assert judged(tmp_path, dump(sound())) == (0, "")


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_report_never_passes(edit: str, tmp_path: Path) -> None:
    data = sound()
    change, what = EDITS[edit]
    change(data)
    code, message = judged(tmp_path, json.dumps(data))
    assert code in (1, 2)
    assert what in message or code == 1, message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_never_passes(number: str, tmp_path: Path) -> None:
    code, message = judged(tmp_path, dump(sound()).replace('"drop": 0.12', f'"drop": {number}', 1))
    assert code == 2 and ("number" in message)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_was_cut_never_passes(tmp_path: Path, data: st.DataObject) -> None:
    text = dump(sound()).rstrip()
    code, message = judged(tmp_path, text[: data.draw(st.integers(0, len(text) - 1))])
    assert code == 2 and "JSON" in message


def test_bytes_that_are_no_text_never_pass(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(EdgepressError, match="not JSON"):
        app(["gate", str(tmp_path)], standalone_mode=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_field_that_is_lost_or_replaced_makes_an_internal_error(data: st.DataObject) -> None:
    """What is judged after `faults` found nothing has everything that the judgement reads."""
    from edgepress.report.findings import verdict_findings
    from edgepress.report.junit import render_junit
    from edgepress.report.openmetrics import render_metrics
    from edgepress.report.summary import render_summary

    changed = spoil(report(), data)
    if next(faults(changed), None) is None:
        for render in (render_junit, render_metrics, render_summary, verdict_findings):
            render(changed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports, st.data())
def test_the_schema_is_followed_exactly_where_the_reference_validator_says_so(original: dict[str, Any], data: st.DataObject) -> None:
    changed = spoil(original, data)
    assert (next(violations(SCHEMA, changed), None) is None) == Draft202012Validator(SCHEMA).is_valid(changed)


def keywords(schema: Any, named: bool = False) -> set[str]:
    """Every keyword of a schema; names of properties and definitions are none."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    found = set() if named else set(schema)
    return found.union(*(keywords(value, not named and key in ("properties", "$defs")) for key, value in schema.items()))


def test_every_keyword_of_the_schema_is_checked() -> None:
    assert keywords(SCHEMA) <= CHECKED | NOTES


def spoil(original: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A copy in which one value, wherever it stands, is gone or another."""
    changed = copy.deepcopy(original)
    places = list(walk(changed))
    holder, key = places[data.draw(st.integers(0, len(places) - 1))]
    value = data.draw(st.sampled_from(["gone", None, [], {}, "", "x", -1, 0, 0.5, True, "validated", "pass", "../x", ["y"], {"z": 1}]))
    if value == "gone":
        del holder[key]
    else:
        holder[key] = value
    return changed


def walk(value: Any) -> Any:
    """(container, key) of everything inside."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from walk(value[key])


@pytest.mark.parametrize(
    ("name", "limit", "observed", "interval", "holds"),
    [
        ("accuracy_drop", "at most 1.00 pp", "0.90 pp", [0.8, 1.004], True),  # the limit was 1.004 at most: texts are rounded
        ("accuracy_drop", "at most 1.00 pp", "0.90 pp", [0.8, 1.006], False),
        ("latency_p95", "at most 5 ms", "4.2 ms", [4.1, 4.9], True),
        ("latency_p95", "at most 5 ms", "6.2 ms", [6.1, 6.9], False),
        ("size", "at most 2.00 MB", "512 bytes", None, True),
        ("size", "at most 512 bytes", "2.00 kB", None, False),
        ("sqnr", "at least 20.00 dB", "38.40 dB", None, True),
        ("sqnr", "at least 20.00 dB", "10.00 dB", None, False),
        ("argmax_agreement", "at least 1e-05", "0.99", None, True),
        ("accuracy_drop", "at most 0.5", "0.12 nats (0.10 nats to 0.20 nats)", [0.1, 0.2], True),
        ("baseline.size", "at most 1.020", "1.000", None, True),
    ],
)
def test_a_pass_is_held_against_its_own_numbers(name: str, limit: str, observed: str, interval: list[float] | None, holds: bool) -> None:
    found = list(faults(report(target("a", gates=[gate(name, limit, observed, interval=interval)]))))
    assert (found == []) == holds, found
