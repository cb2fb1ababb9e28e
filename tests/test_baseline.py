"""The accepted release: its file, what is comparable with it, the ratchet, and the artifacts that are timed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgepress.baseline.artifacts import at_hand
from edgepress.baseline.evidence import baseline_evidence
from edgepress.baseline.file import Baseline, Entry, read_baseline, render_baseline
from edgepress.bundle.digest import digest
from edgepress.judgement import against_baseline, conclude
from edgepress.report.schema import load_schema
from edgepress.report.write import dump
from edgepress.targets.errors import ConfigError, EdgepressError, IntegrityError
from edgepress.validators.accuracy import compare_zero_one
from edgepress.validators.score_bits import pack, unpack
from tests.baseline_sample import DATA, OTHER, SAMPLES, SHA, accepted, cli, limits, measured, run, scores, today, written
from tests.report_sample import failing, gate, lost, not_executable

PROJECT = "cifar-resnet20"
Change = Callable[[dict[str, Any]], object]


def baseline_of(tmp_path: Path, made: dict[str, Any]) -> Baseline:
    code, file = accepted(tmp_path, made)
    assert code == 0
    return read_baseline(file, PROJECT)


def judged(made: dict[str, Any], baseline: Baseline | None) -> dict[str, dict[str, Any]]:
    """The gates of the first target against a baseline, by name."""
    found = json.loads(dump(conclude(against_baseline(made, baseline, "b.yaml"), (), today())))
    assert [error.message for error in Draft202012Validator(load_schema("report.v1")).iter_errors(found)] == []
    return {item["name"].removeprefix("baseline."): item for item in found["targets"][0]["gates"] if item["name"].startswith("baseline.")}


def verdicts(made: dict[str, Any], baseline: Baseline | None) -> dict[str, str]:
    return {name: item["verdict"] for name, item in judged(made, baseline).items()}


# --- the file


def test_the_file_states_one_sorted_fact_per_line_and_is_written_alike_again(tmp_path: Path) -> None:
    code, file = accepted(tmp_path, run(measured("tflite"), measured()))
    text = file.read_text()
    assert code == 0 and render_baseline(read_baseline(file, PROJECT)) == text
    facts = [line.strip().partition(":")[0] for line in text.splitlines() if line.startswith("    ")]
    half = len(facts) // 2
    assert facts[:half] == sorted(facts[:half]) == facts[half:]
    said = ('reason: "release 1"', 'accepted_by: "jane"', 'run: "old"')
    for fact in (*said, f'artifact: "{SHA}"', f'dataset: "{DATA}"', "size_bytes: 312004"):
        assert f"    {fact}\n" in text
    assert text.index("onnxruntime:") < text.index("tflite:")


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
numbers = st.floats(-1e9, 1e9)
positive = st.floats(1e-9, 1e9)
counts = st.integers(1, 2**40)
BY_TYPE = {"Words": words, "Sha": hashes, "float": numbers, "str": words, "Positive": positive, "Count": counts, "Whole": counts}
entries = st.fixed_dictionaries(
    {name: BY_TYPE[str(kind).partition(" | ")[0]] for name, kind in Entry.__annotations__.items() if "None" not in str(kind)},
    optional={name: BY_TYPE[str(kind).partition(" | ")[0]] for name, kind in Entry.__annotations__.items() if "None" in str(kind)},
).map(Entry.model_validate)


@given(st.dictionaries(words, entries, max_size=3), words, st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_written_is_read_back_and_written_alike(
    tmp_path: Path, facts: dict[str, Entry], project: str, data: st.DataObject
) -> None:
    held = data.draw(st.dictionaries(st.sampled_from(sorted(facts)), words)) if facts else {}
    text = render_baseline(Baseline(project, facts, held))
    (tmp_path / "b.yaml").write_text(text, encoding="utf-8", newline="")
    found = read_baseline(tmp_path / "b.yaml", project)
    assert found == Baseline(project, facts, held) and render_baseline(found) == text


def test_other_targets_keep_their_lines(tmp_path: Path) -> None:
    accepted(tmp_path, run(measured("tflite"), measured()))
    before = (tmp_path / "edgepress-baseline.yaml").read_text().splitlines()
    _, file = accepted(tmp_path, run(measured("tflite", peak_memory_bytes=5)))
    after = file.read_text().splitlines()
    assert after[: after.index("  tflite:")] == before[: before.index("  tflite:")] and len(after) == len(before)
    changed = [line for line in after if line not in before]
    assert {line.strip().partition(":")[0] for line in changed} <= {"peak_memory_bytes", "accepted", "checksum"} and changed


EDITS = {
    "a better drop": ("    drop: 0.12", "    drop: -0.5"),
    "another dataset": (DATA, OTHER),
    "another reason": ('"release 1"', '"release 2"'),
    "another score": (scores(171), scores(170)),
    "an unknown key": ("    drop: 0.12", "    drop: 0.12\n    dorp: 1"),
    "a fact taken away": ("    drop: 0.12\n", ""),
    "text for a number": ("    drop: 0.12", "    drop: good"),
    "a fact twice": ("    drop: 0.12\n", "    drop: 0.12\n    drop: 0.12\n"),
    "no hash": (f'artifact: "{SHA}"', 'artifact: "abc"'),
    "a merge left half way": ("    drop: 0.12\n", "<<<<<<< HEAD\n    drop: 0.12\n=======\n"),
    "another schema": ("baseline/v1", "baseline/v2"),
    "another project": (PROJECT, "other"),
    "another target's name": ("  onnxruntime:", "  openvino:"),
    "the scores taken away": (f'  onnxruntime: "{scores(171)}"\n', ""),
    "a list of targets": ("targets:", "tragets:"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused_by_name_and_nothing_is_judged(edit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run()
    _, file = accepted(tmp_path, made)
    old, new = EDITS[edit]
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert cli("gate", written(tmp_path / "new", made), "--baseline", file) == 2
    error = capsys.readouterr().err
    assert str(file) in error and "Traceback" not in error and "internal error" not in error


@pytest.fixture(scope="module", name="text")
def accepted_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return accepted(tmp_path_factory.mktemp("accepted"), run())[1].read_text()


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_figure_is_found(tmp_path: Path, text: str, data: st.DataObject) -> None:
    file = tmp_path / "edgepress-baseline.yaml"
    figures = [i for i, letter in enumerate(text) if letter.isdigit() and i > text.index("targets:")]
    place = data.draw(st.sampled_from(figures))
    digit = data.draw(st.sampled_from([other for other in "0123456789" if other != text[place]]))
    file.write_text(text[:place] + digit + text[place + 1 :])
    with pytest.raises((ConfigError, IntegrityError)):
        read_baseline(file, PROJECT)


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_scores_come_back_as_they_were(samples: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 2, samples).astype(np.float64)
    text = pack(drawn)
    assert text is not None and np.array_equal(unpack(text, samples), drawn)
    with pytest.raises(IntegrityError):
        unpack(text, samples + 8)


def test_scores_that_are_not_right_or_wrong_are_not_kept() -> None:
    assert pack(np.array([0.0, 0.5])) is None and pack(None) is None


# --- accepting


def without_hash() -> dict[str, Any]:
    made = run()
    del made["reference"]["dataset_sha256"]
    return made


REFUSED = {
    "a failed gate": (run(measured(gates=[gate("size", "2MB", "3 MB", "fail")])), "verdict is fail"),
    "an undecided gate": (run(measured(gates=[gate("size", "2MB", "?", "undecided", next_step="x")])), "verdict is undecided"),
    "an error": (run(measured(gates=[gate("size", "2MB", "NaN", "error")])), "verdict is error"),
    "a lost target": (run(measured(), lost("tflite")), "verdict is error"),
    "a worse release": (
        run(measured(gates=[gate("baseline.size", "1.02", "1.1", "fail")])),
        "verdict is fail",
    ),
    "a release that may be worse": (
        run(measured(gates=[gate("baseline.accuracy_drop", "0.3", "0.2", "undecided", interval=[0, 1], next_step="x")])),
        "verdict is undecided",
    ),
    "no hash of the data": (without_hash(), "hash of the validation data"),
    "no gate": (run(measured(gates=[])), "verdict is error"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_did_not_pass_is_refused_and_nothing_is_written(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, words = REFUSED[case]
    code, file = accepted(tmp_path, made)
    assert code == 2 and words in capsys.readouterr().err
    assert not file.exists() and [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("verdict", ["fail", "undecided"])
def test_a_verdict_is_allowed_by_name_and_kept_in_the_file(verdict: str, tmp_path: Path) -> None:
    made = run(measured(gates=[gate("size", "2MB", "3 MB", verdict, next_step="x")]))
    other = "undecided" if verdict == "fail" else "fail"
    assert accepted(tmp_path, made, "--allow-verdict", other)[0] == 2
    code, file = accepted(tmp_path, made, "--allow-verdict", verdict)
    assert code == 0 and f'    verdict: "{verdict}"\n' in file.read_text()


def test_an_error_cannot_be_allowed(tmp_path: Path) -> None:
    made = run(measured(gates=[gate("size", "2MB", "NaN", "error")]))
    assert accepted(tmp_path, made, "--allow-verdict", "error")[0] == 2


@pytest.mark.parametrize("reason", ["", "  ", "\x1b[2J"])
def test_a_reason_must_say_something(reason: str, tmp_path: Path) -> None:
    assert cli("baseline", "accept", written(tmp_path, run()), "--reason", reason, "--file", tmp_path / "b.yaml") == 2
    assert not (tmp_path / "b.yaml").exists()


def test_a_run_whose_artifact_was_changed_since_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = tmp_path / "old/bundle/onnxruntime/model.bin"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"x")
    assert accepted(tmp_path, run())[0] == 2
    assert "the report of the run says" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    _, file = accepted(tmp_path, run())
    file.write_text("targets: [")
    assert accepted(tmp_path, run())[0] == 2 and file.read_text() == "targets: ["


def test_the_first_release_is_accepted_although_there_was_nothing_to_compare_with(tmp_path: Path) -> None:
    first = conclude(against_baseline(run(), None, str(tmp_path / "b.yaml")), (), today())
    assert first["verdict"] == "undecided"
    run_dir = written(tmp_path / "run", first)
    assert cli("gate", run_dir) == 3
    assert cli("baseline", "accept", run_dir, "--reason", "first") == 0  # into the file the run looked for
    assert cli("gate", run_dir, "--baseline", tmp_path / "b.yaml") == 0


# --- what is comparable


def test_the_same_run_again_holds_everything(tmp_path: Path) -> None:
    gates = judged(run(), baseline_of(tmp_path, run()))
    assert {name: item["verdict"] for name, item in gates.items()} == dict.fromkeys(
        ("accuracy_drop", "latency_ratio", "size", "peak_memory"), "pass"
    )
    assert "paired with the baseline's scores" in gates["accuracy_drop"]["observed"]
    assert "ratio of the two ratios to fp32" in gates["latency_ratio"]["observed"]


def set_in(part: str, key: str, value: object) -> Change:
    return lambda made: made[part].__setitem__(key, value)


def in_target(key: str, value: object) -> Change:
    return lambda made: made["targets"][0].__setitem__(key, value)


def in_ratio(key: str, value: object) -> Change:
    return lambda made: made["targets"][0]["latency_ratio"].__setitem__(key, value)


def in_latency(key: str, value: object) -> Change:
    return lambda made: made["targets"][0]["latency_ms"].__setitem__(key, value)


EVERY = ("accuracy_drop", "latency_ratio", "size", "peak_memory")
CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another machine": (set_in("environment", "fingerprint", "feedfeedfeedfeed"), ("latency_ratio", "peak_memory")),
    "other data": (set_in("reference", "dataset_sha256", OTHER), ("accuracy_drop",)),
    "data without a hash": (lambda made: made["reference"].pop("dataset_sha256", None), ("accuracy_drop",)),
    "another metric": (lambda made: made["reference"]["metric"].update(name="f1_score"), ("accuracy_drop",)),
    "another unit": (lambda made: made["reference"]["metric"].update(drop_unit="loss"), ("accuracy_drop",)),
    "another checkpoint": (set_in("environment", "checkpoint_sha256", OTHER), ("latency_ratio",)),
    "another original": (set_in("reference", "macs", 1), ("latency_ratio",)),
    "another runtime version": (in_ratio("reference", "fp32 in onnxruntime 2.0"), ("latency_ratio",)),
    "another confidence": (in_ratio("confidence", 0.8), ("latency_ratio",)),
    "more threads": (in_latency("threads", 2), ("latency_ratio", "peak_memory")),
    "another batch": (in_latency("batch", 8), ("latency_ratio", "peak_memory")),
    "another target": (in_target("name", "openvino"), EVERY),
    "another runtime": (in_target("runtime", "openvino"), EVERY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_comparable_is_undecided_with_a_next_step(change: str, tmp_path: Path) -> None:
    made = run()
    apply, touched = CHANGES[change]
    apply(made)
    if change == "another unit":
        made["targets"][0]["against_baseline"]["limits"][0]["unit"] = ""
    gates = judged(made, baseline_of(tmp_path, run()))
    assert {name for name, item in gates.items() if item["verdict"] == "undecided"} == set(touched)
    for name in touched:
        assert gates[name]["observed"].startswith("not comparable: ") and gates[name]["next_step"]
    assert cli("gate", written(tmp_path / "new", made), "--baseline", tmp_path / "edgepress-baseline.yaml") == 3


@given(st.sets(st.sampled_from(sorted(CHANGES)), min_size=1), st.booleans(), st.integers(0, SAMPLES), st.floats(0.01, 100))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_is_not_comparable_ever_passes_whatever_the_figures_and_the_recipe_say(
    tmp_path: Path, changes: set[str], accept: bool, wrong: int, size: float
) -> None:
    file = tmp_path / "b.yaml"
    if not file.exists():
        file.write_text(render_baseline(baseline_of(tmp_path, run())))
    made = run(measured(wrong=wrong))
    made["targets"][0]["unmeasured"] = ["accuracy", "latency", "peak_memory"] if accept else []
    made["targets"][0]["latency_ratio"].update(value=size, interval=[size * 0.9, size * 1.1])
    for change in sorted(changes):
        CHANGES[change][0](made)
    if "another unit" in changes:
        made["targets"][0]["against_baseline"]["limits"][0]["unit"] = ""
    touched = {name for change in changes for name in CHANGES[change][1]}
    found = verdicts(made, read_baseline(file, PROJECT))
    assert {found[name] for name in touched} == {"undecided"}


@pytest.mark.parametrize(("wrong", "shift", "verdict"), [(171, 0, "pass"), (171, 10, "undecided"), (211, 0, "fail"), (100, 0, "pass")])
def test_accuracy_is_paired_sample_by_sample(wrong: int, shift: int, verdict: str, tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run())
    made = run(measured(wrong=wrong, shift=shift))
    item = judged(made, baseline)["accuracy_drop"]
    before, after = unpack(scores(171), SAMPLES), unpack(scores(wrong, shift), SAMPLES)
    low, high = compare_zero_one(before, after)[1]
    assert item["interval"] == pytest.approx([low * 100, high * 100])
    assert item["verdict"] == ("pass" if high < 0.01 else "fail" if low > 0.01 else "undecided")
    assert item["verdict"] == verdict or shift == 10


def test_another_float_original_does_not_matter_to_paired_scores(tmp_path: Path) -> None:
    assert verdicts(run(checkpoint_sha256=OTHER), baseline_of(tmp_path, run()))["accuracy_drop"] == "pass"


def test_without_scores_the_intervals_of_the_two_drops_are_added(tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run(measured(sample_scores=None)))
    made = run()
    item = judged(made, baseline)["accuracy_drop"]
    assert item["interval"] == pytest.approx([-0.36, 0.36]) and "no scores per sample" in item["observed"]
    made["environment"]["checkpoint_sha256"] = OTHER
    assert judged(made, baseline)["accuracy_drop"]["verdict"] == "undecided"


@pytest.mark.parametrize(("value", "verdict"), [(0.312, "pass"), (0.325, "undecided"), (0.4, "fail")])
def test_a_latency_without_the_artifact_is_the_ratio_of_two_ratios(value: float, verdict: str, tmp_path: Path) -> None:
    made = run()
    made["targets"][0]["latency_ratio"].update(value=value, interval=[value - 0.003, value + 0.003])
    item = judged(made, baseline_of(tmp_path, run()))["latency_ratio"]
    assert item["verdict"] == verdict
    assert item["interval"] == pytest.approx([(value - 0.003) / 0.315, (value + 0.003) / 0.309])


def window(sha: str, value: float = 1.2) -> dict[str, Any]:
    interval = [value - 0.01, value + 0.01]
    return {"value": value, "interval": interval, "confidence": 0.95, "reference": "x", "pairs": 664, "artifact_sha256": sha}


def test_a_window_with_the_accepted_artifact_counts_on_any_machine(tmp_path: Path) -> None:
    made = run(measured(against_baseline={**limits(), "latency": window(SHA)}), fingerprint="feedfeedfeedfeed")
    item = judged(made, baseline_of(tmp_path, run()))["latency_ratio"]
    assert item["verdict"] == "fail" and "in one window" in item["observed"] and item["interval"] == [1.19, 1.21]


def test_a_window_with_another_artifact_counts_for_nothing(tmp_path: Path) -> None:
    made = run(measured(against_baseline={**limits(), "latency": window(OTHER, 0.5)}), fingerprint="feedfeedfeedfeed")
    assert verdicts(made, baseline_of(tmp_path, run()))["latency_ratio"] == "undecided"


def test_a_window_that_failed_is_an_error(tmp_path: Path) -> None:
    made = run(measured(against_baseline={**limits(), "error": "the baseline crashed"}))
    assert verdicts(made, baseline_of(tmp_path, run()))["latency_ratio"] == "error"


@pytest.mark.parametrize(("unmeasured", "verdict"), [([], "undecided"), (["latency"], "accepted")])
def test_a_latency_this_machine_cannot_take_is_accepted_only_by_name(unmeasured: list[str], verdict: str, tmp_path: Path) -> None:
    away = {"unmeasurable": "no GPU", **{key: value for key, value in limits("latency_ratio").items() if key != "unmeasurable"}}
    made = run(measured(latency_ratio=None, latency_ms=None, against_baseline=away, unmeasured=unmeasured))
    assert verdicts(made, baseline_of(tmp_path, run()))["latency_ratio"] == verdict


def test_a_latency_that_was_not_taken_without_a_reason_is_an_error(tmp_path: Path) -> None:
    made = run(measured(latency_ratio=None, latency_ms=None))
    assert verdicts(made, baseline_of(tmp_path, run()))["latency_ratio"] == "error"


def test_a_larger_file_or_peak_fails(tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run())
    made = run(measured(artifact={"path": "bundle/a/b", "sha256": OTHER, "size_bytes": 320_000}, peak_memory_bytes=70_000_000))
    found = verdicts(made, baseline)
    assert (found["size"], found["peak_memory"]) == ("fail", "fail")


def test_what_one_device_loads_is_compared(tmp_path: Path) -> None:
    two_files = {"artifact": {"path": "bundle/a/b", "sha256": OTHER, "size_bytes": 900_000}, "facts": {"device_bytes": 312_004}}
    assert verdicts(run(measured(**two_files)), baseline_of(tmp_path, run()))["size"] == "pass"


def test_without_a_baseline_every_gate_is_undecided_and_says_how_to_get_one() -> None:
    gates = judged(run(), None)
    assert {item["verdict"] for item in gates.values()} == {"undecided"}
    assert all("edgepress baseline accept" in item["next_step"] for item in gates.values())


def test_gate_with_a_baseline_needs_something_that_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = accepted(tmp_path, run())
    assert cli("gate", written(tmp_path / "new", run(measured(against_baseline=None))), "--baseline", file) == 2
    assert "against_baseline" in capsys.readouterr().err
    assert cli("gate", written(tmp_path / "new", run()), "--baseline", tmp_path / "none.yaml") == 2


def test_lost_targets_stay_errors(tmp_path: Path) -> None:
    _, file = accepted(tmp_path, run())
    assert cli("gate", written(tmp_path / "new", run(measured(), lost("tflite"))), "--baseline", file) == 2


# --- the ratchet


WORSE: dict[str, dict[str, Any]] = {
    "accuracy_drop": {"wrong": 211},
    "latency_ratio": {
        "latency_ratio": {"value": 0.33, "interval": [0.32, 0.34], "confidence": 0.95, "reference": "fp32 in onnxruntime 1.32.0"}
    },
    "size": {"artifact": {"path": "bundle/a/b", "sha256": OTHER, "size_bytes": 312_005}},
    "peak_memory": {"peak_memory_bytes": 64_000_000},
}


@pytest.mark.parametrize("figure", WORSE)
def test_the_ratchet_refuses_what_got_worse_and_the_file_stays(figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = accepted(tmp_path, run())
    before = file.read_bytes()
    made = run(measured(**WORSE[figure]))
    assert accepted(tmp_path, made, "--ratchet")[0] == 2
    assert figure in capsys.readouterr().err and file.read_bytes() == before
    assert accepted(tmp_path, made)[0] == 0


def test_the_ratchet_takes_what_is_better_or_within_its_interval(tmp_path: Path) -> None:
    accepted(tmp_path, run())
    within = {"value": 0.313, "interval": [0.31, 0.316], "confidence": 0.95, "reference": "fp32 in onnxruntime 1.32.0"}
    assert accepted(tmp_path, run(measured(wrong=172, latency_ratio=within)), "--ratchet")[0] == 0
    assert accepted(tmp_path, run(measured(wrong=100, peak_memory_bytes=1)), "--ratchet")[0] == 0


def test_the_recipe_may_ask_for_the_ratchet_and_the_command_line_may_lift_it(tmp_path: Path) -> None:
    accepted(tmp_path, run())
    made = run(measured(wrong=211, against_baseline={**limits(), "ratchet": True}))
    assert accepted(tmp_path, made)[0] == 2
    assert accepted(tmp_path, made, "--no-ratchet")[0] == 0


def test_the_ratchet_refuses_what_it_cannot_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(tmp_path, run())
    assert accepted(tmp_path, run(fingerprint="feedfeedfeedfeed"), "--ratchet")[0] == 2
    assert "cannot tell whether latency_ratio of 'onnxruntime' got worse" in capsys.readouterr().err


def test_the_ratchet_takes_new_targets(tmp_path: Path) -> None:
    accepted(tmp_path, run())
    assert accepted(tmp_path, run(measured("tflite")), "--ratchet")[0] == 0


# --- artifacts at hand


def bundle(folder: Path, content: bytes = b"model") -> str:
    """A bundle with one artifact; its sha256."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "onnxruntime/model.onnx").write_bytes(content)
    sha = digest(folder / "onnxruntime/model.onnx")
    entry = {"sha256": sha, "runtime": "onnxruntime", "folder": "onnxruntime", "artifact": {"path": "model.onnx"}}
    (folder / "bundle.json").write_text(json.dumps({"artifacts": [entry]}))
    return sha


def test_an_artifact_is_found_by_its_hash(tmp_path: Path) -> None:
    sha = bundle(tmp_path / "old/bundle")
    made = run(measured(artifact={"path": "bundle/onnxruntime/model.onnx", "sha256": sha, "size_bytes": 5}))
    baseline = baseline_of(tmp_path, made)
    file, mine = tmp_path / "edgepress-baseline.yaml", made["environment"]["fingerprint"]
    assert at_hand(baseline, file, mine, None)["onnxruntime"].folder == tmp_path / "old/bundle/onnxruntime"
    assert at_hand(baseline, file, "feedfeedfeedfeed", None) == {}
    assert at_hand(baseline, file, "feedfeedfeedfeed", tmp_path)["onnxruntime"].sha256 == sha
    (tmp_path / "old/bundle/onnxruntime/model.onnx").write_bytes(b"swapped")
    assert at_hand(baseline, file, mine, tmp_path) == {}


def test_a_folder_of_artifacts_that_is_not_there_or_not_readable_is_an_error(tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run())
    with pytest.raises(ConfigError):
        at_hand(baseline, tmp_path / "b.yaml", "", tmp_path / "none")
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(IntegrityError):
        at_hand(baseline, tmp_path / "b.yaml", "", tmp_path)


def test_evidence_of_a_tampered_report_is_an_error(tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run())
    made = run(measured(sample_scores="AAAA"))
    assert baseline_evidence(made, made["targets"][0], baseline, "b.yaml")[0].error


def test_reports_of_all_kinds_are_judged_without_a_fault(tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, run())
    made = run(measured(), failing("tflite"), not_executable("coreml", "accepted"), lost("openvino"))
    assert conclude(against_baseline(made, baseline, "b.yaml"), (), today())["verdict"] == "error"
    with pytest.raises(EdgepressError):
        made["targets"][0]["against_baseline"]["limits"][0].pop("limit")
        against_baseline(made, baseline, "b.yaml")
