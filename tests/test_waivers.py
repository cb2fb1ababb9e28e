"""Waivers: let through by name, for a reason, until a day; never a pass, and never for good."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgepress.config import load
from edgepress.config_waivers import Waiver
from edgepress.judgement import conclude
from edgepress.report.html import render_html
from edgepress.report.junit import render_junit
from edgepress.report.present import headline, shown_verdict, target_verdict, views
from edgepress.report.schema import load_schema
from edgepress.report.summary import render_summary
from edgepress.starter import write_starter
from edgepress.targets.errors import ConfigError
from edgepress.validators.gates import exit_code
from tests.baseline_sample import cli, measured, run, today, waiver, written
from tests.report_sample import gate, lost

CODES = {"pass": 0, "fail": 1, "undecided": 3, "accepted": 0, "error": 2}


def with_gate(verdict: str, **more: Any) -> dict[str, Any]:
    step = "Measure more." if verdict == "undecided" else None
    size = gate("size", "2MB", "1 MB" if verdict in ("pass", "accepted") else "3 MB", verdict, next_step=step)
    return run(measured(gates=[size, gate("accuracy_drop", "1 pp", "0 pp")], unmeasured=["size"]), **more)


def gate_code(folder: Path, made: dict[str, Any]) -> int:
    return cli("gate", written(folder, made))


@pytest.mark.parametrize("days", [0, 1, 300])
@pytest.mark.parametrize(("verdict", "code"), [("fail", 0), ("undecided", 0), ("error", 2), ("pass", 0), ("accepted", 0)])
def test_a_valid_waiver_lets_what_did_not_pass_through_and_no_error(verdict: str, code: int, days: int, tmp_path: Path) -> None:
    assert gate_code(tmp_path, with_gate(verdict, waivers=[waiver("size", days)])) == code
    assert gate_code(tmp_path, with_gate(verdict)) == CODES[verdict]


@pytest.mark.parametrize("days", [-1, -300])
@pytest.mark.parametrize(("verdict", "code"), [("fail", 1), ("undecided", 1), ("error", 2), ("pass", 1), ("accepted", 1)])
def test_an_expired_waiver_fails_even_where_the_gate_passes(verdict: str, code: int, days: int, tmp_path: Path) -> None:
    made = with_gate(verdict, waivers=[waiver("size", days)])
    assert gate_code(tmp_path, made) == code


def test_an_expired_waiver_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_code(tmp_path, with_gate("fail", waivers=[waiver("size", -3)])) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "waiver.size is expired 3 days ago (owner jane: the new kernel comes in May)" in shown


def concluded(verdict: str, days: int) -> dict[str, Any]:
    entry = waiver("size", days)
    made: dict[str, Any] = conclude(with_gate(verdict), [Waiver(**{**entry, "expires": today(days)})], today())  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("verdict", ["fail", "undecided"])
def test_a_waived_gate_is_shown_as_waived_with_owner_reason_and_day_everywhere(verdict: str) -> None:
    made = concluded(verdict, 5)
    assert [error.message for error in Draft202012Validator(load_schema("report.v1")).iter_errors(json.loads(json.dumps(made)))] == []
    assert views(made)[0].verdict == "waived" and made["verdict"] == "pass"
    assert "1 gate." in headline(made) and "Waived, and no pass: size (onnxruntime)" in headline(made)
    case = xml.fromstring(render_junit(made).encode())[0].findall("testcase")[0]
    skipped = case.find("skipped")
    assert skipped is not None and skipped.get("type") == "waived"
    for text in (skipped.text or "", render_summary(made).replace("\\", ""), render_html(made)):
        for fact in ("jane", "the new kernel comes in May", today(5).isoformat(), "waived", verdict):
            assert fact in text


@pytest.mark.parametrize("verdict", ["fail", "undecided"])
def test_a_report_carries_a_waived_gate_under_a_promised_name_and_the_run_is_its_worst_gate(verdict: str) -> None:
    """Whoever reads report.json knows five verdicts; of these `accepted` is no pass and no obstacle."""
    made = concluded(verdict, 5)
    (waived, other) = made["targets"][0]["gates"]
    assert waived["verdict"] == target_verdict(made["targets"][0]) == "accepted" and waived["waiver"]["verdict"] == verdict
    assert other["verdict"] == made["verdict"] == "pass"


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_a_waiver_beside_another_verdict_is_not_of_the_schema(verdict: str) -> None:
    made = concluded("fail", 5)
    made["targets"][0]["gates"][0]["verdict"] = verdict
    assert not Draft202012Validator(load_schema("report.v1")).is_valid(json.loads(json.dumps(made)))


def test_a_waiver_of_one_gate_leaves_another_failed(tmp_path: Path) -> None:
    made = run(measured(gates=[gate("size", "2MB", "3 MB", "fail"), gate("latency_ratio", "1", "2", "fail")]), waivers=[waiver("size", 5)])
    assert gate_code(tmp_path, made) == 1


def test_a_waiver_of_one_target_leaves_another_failed(tmp_path: Path) -> None:
    bad = [gate("size", "2MB", "3 MB", "fail")]
    made = run(measured(gates=bad), measured("tflite", gates=bad), waivers=[waiver("size", 5)])
    assert gate_code(tmp_path, made) == 1


def test_a_lost_target_cannot_be_waived(tmp_path: Path) -> None:
    assert gate_code(tmp_path, run(measured(), lost("tflite"), waivers=[waiver("size", 5, "tflite")])) == 2


def test_a_waiver_that_held_in_the_run_expires_before_a_later_gate(tmp_path: Path) -> None:
    made = concluded("fail", 5)
    assert gate_code(tmp_path, made) == 0
    made["waivers"][0]["expires"] = made["targets"][0]["gates"][0]["waiver"]["expires"] = today(-1).isoformat()
    assert gate_code(tmp_path, made) == 1


verdicts = st.sampled_from(sorted(CODES))


@given(st.lists(verdicts, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=4))
@settings(max_examples=150, deadline=None)
def test_waivers_only_turn_fails_and_undecided_into_waived_and_are_undone_by_none(found: list[str], chosen: list[tuple[int, int]]) -> None:
    made = run(measured(gates=[gate(f"gate{i}", "", "", verdict, next_step="x") for i, verdict in enumerate(found)]))
    days = {place: day for place, day in chosen if place < len(found)}
    waivers = [Waiver("onnxruntime", f"gate{place}", "jane", "why", today(day)) for place, day in days.items()]
    after = conclude(made, waivers, today())
    gates = {item["name"]: shown_verdict(item) for item in after["targets"][0]["gates"]}
    for i, verdict in enumerate(found):
        holds = days.get(i, -1) >= 0 and verdict in ("fail", "undecided")
        assert gates[f"gate{i}"] == ("waived" if holds else verdict)
        assert (f"waiver.gate{i}" in gates) == (days.get(i, 0) < 0)
    if any(day < 0 for day in days.values()):
        assert exit_code(after["verdict"]) in (1, 2)
    assert conclude(after, waivers, today())["targets"] == after["targets"]
    later = conclude(after, waivers, today() + timedelta(days=9))
    assert not any(shown_verdict(item) == "waived" for item in later["targets"][0]["gates"])
    assert conclude(after, [], today())["targets"] == made["targets"]


# --- the recipe and the file


def recipe(folder: Path, waivers: Any) -> Path:
    write_starter(folder, "digits")
    path = folder / "edgepress.yaml"
    text = yaml.safe_load(path.read_text()) | {"targets": ["onnxruntime", "tflite"], "waivers": waivers}
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


GOOD = {"target": "tflite", "gate": "latency_ratio", "owner": "jane", "reason": "slow", "expires": "2026-12-31"}


def test_waivers_are_read_from_the_recipe_or_from_a_file_it_names(tmp_path: Path) -> None:
    (found,) = load(recipe(tmp_path / "a", [GOOD])).waivers
    assert found.to_json() == GOOD
    path = recipe(tmp_path / "b", "waivers.yaml")
    entry = "{target: tflite, gate: latency_ratio, owner: jane, reason: slow, expires: 2026-12-31}"
    (tmp_path / "b/waivers.yaml").write_text(f"waivers:\n  - {entry}\n")
    assert load(path).waivers == (found,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "tflit"}, "no target. Did you mean 'tflite'?"),
        ({"gate": "latency"}, "no gate of 'tflite'. Did you mean 'latency_ratio'?"),
        ({"gate": "baseline.size"}, "no gate of 'tflite'"),
        ({"expires": "31.12.2026"}, "is not a day. Write e.g. 2026-12-31"),
        ({"expires": "2026-02-30"}, "is not a day"),
        ({"owner": ""}, "owner"),
        ({"reason": ""}, "reason"),
        ({"until": "2026-12-31"}, "unknown key 'until'"),
    ],
)
def test_a_waiver_that_is_wrong_or_matches_nothing_is_an_error_of_the_recipe(change: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.").replace("?", r"\?")) as error:
        load(recipe(tmp_path, [{**GOOD, **change}]))
    assert "edgepress.yaml:" in str(error.value)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_waiver_needs_every_key(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        load(recipe(tmp_path, [{name: value for name, value in GOOD.items() if name != key}]))


def test_one_gate_is_waived_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="waived twice"):
        load(recipe(tmp_path, [GOOD, {**GOOD, "owner": "joe"}]))


def file_of(folder: Path, *entries: dict[str, str]) -> Path:
    path = folder / "waivers.yaml"
    path.write_text(yaml.safe_dump({"waivers": list(entries)}))
    return path


def test_gate_takes_a_file_of_waivers_in_place_of_those_of_the_recipe(tmp_path: Path) -> None:
    run_dir = written(tmp_path / "run", with_gate("fail", waivers=[waiver("accuracy_drop", -5)]))
    assert cli("gate", run_dir) == 1
    assert cli("gate", run_dir, "--waivers", file_of(tmp_path, waiver("size", 5))) == 0
    assert cli("gate", run_dir, "--waivers", file_of(tmp_path, waiver("size", -5))) == 1


@pytest.mark.parametrize("entry", [waiver("sise", 5), waiver("size", 5, "onnx"), {"target": "onnxruntime"}])
def test_a_file_of_waivers_that_matches_nothing_exits_with_two(entry: dict[str, str], tmp_path: Path) -> None:
    run_dir = written(tmp_path / "run", with_gate("fail"))
    assert cli("gate", run_dir, "--waivers", file_of(tmp_path, entry)) == 2


@pytest.mark.parametrize("text", ["", "waivers: 3", "- a", "waivers: []\nmore: 1", "waivers: ["])
def test_a_file_that_is_no_list_of_waivers_exits_with_two(text: str, tmp_path: Path) -> None:
    run_dir = written(tmp_path / "run", with_gate("fail"))
    (tmp_path / "w.yaml").write_text(text)
    assert cli("gate", run_dir, "--waivers", tmp_path / "w.yaml") == 2
    assert cli("gate", run_dir, "--waivers", tmp_path / "none.yaml") == 2


def test_waivers_of_a_report_that_was_edited_exit_with_two(tmp_path: Path) -> None:
    assert gate_code(tmp_path, with_gate("fail", waivers=[{"target": "onnxruntime", "gate": "size", "expires": "soon"}])) == 2
