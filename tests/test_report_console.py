"""What the commands print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgepress.report.console import (
    print_diff,
    print_doctor,
    print_explanation,
    print_plan,
    print_run,
    print_targets,
    print_verification,
)
from edgepress.report.explanation import explanation
from edgepress.report.html import render_html
from edgepress.report.summary import render_summary
from tests.report_sample import failing, gate, lost, report, target


def printed(function: Any, *data: Any, width: int = 80, **options: Any) -> str:
    sink = io.StringIO()
    function(*data, console=Console(file=sink, width=width, highlight=False, markup=False, emoji=False, **options))
    return sink.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_verdict_table_fits_the_terminal(width: int) -> None:
    text = printed(print_run, report(), Path("runs/latest"), width=width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_names_and_numbers_are_not_broken(width: int) -> None:
    text = printed(print_run, report(), Path("runs/latest"), width=width)
    for whole in ("onnxruntime", "int8 dynamic", "+1.69 pp", "1.31 to 2.08", "0.31x", "0.30 to 0.32", "312 kB", "not executed"):
        assert whole in text


def test_what_did_not_pass_is_named_with_its_next_step_and_the_verdict_comes_last() -> None:
    lines = printed(print_run, report(), Path("runs/latest"), width=120).splitlines()
    assert any("tflite: accuracy_drop is 1.69 pp" in line for line in lines)
    assert any("next: Run `edgepress explain`" in line for line in lines)
    assert lines[-2].startswith("ERROR  Target 'openvino' could not be exported") and lines[-1] == "report  runs/latest/report.html"


def test_a_training_that_diverged_is_said_with_what_was_kept_and_what_to_try() -> None:
    data = report()
    remark = "the loss was not finite at step 4: the weights at the start were kept; try lr 0.01 or clip 1.0"
    training = {"kind": "distill", "stopped": "diverged", "remarks": ["teacher: the original", remark]}
    data["stages"][1] |= {"name": "distill kd", "drop": 0.0, "interval": [-0.5, 0.5], "report": training}
    assert f"distill kd diverged: {remark}" in printed(print_run, data, Path("r"), width=200)


def test_a_file_far_from_what_it_was_made_from_is_said_everywhere() -> None:
    far = {"max_abs_error": 3.9, "sqnr_db": 1.53, "argmax_agreement": 0.44, "against": "quantized PyTorch model"}
    strange, plain = report(target("coreml", parity=far)), report(target("coreml"))
    words = "coreml: the file's outputs are 1.5 dB from those of the quantized PyTorch model that it was made from"
    for render in (render_html, render_summary, lambda made: printed(print_run, made, Path("runs/latest"), width=400)):
        assert words in render(strange).replace("&#39;", "'").replace("\\", "")
        assert "that it was made from" not in render(plain)


def test_no_colour_in_a_pipe_and_colour_on_a_terminal() -> None:
    assert "\x1b" not in printed(print_run, report(), Path("r"))
    assert "\x1b[" in printed(print_run, report(), Path("r"), force_terminal=True, color_system="standard", legacy_windows=False)


def test_a_name_cannot_drive_the_terminal_or_the_markup() -> None:
    data = report(target("\x1b[2Jx", gates=[gate("[red]size", "1", "\x07", "fail")]), lost("[/bold]"), project="\x1b]0;x\x07")
    text = printed(print_run, data, Path("r"), width=120)
    assert "\x1b" not in text and "\x07" not in text and "[red]size" in text and "[/bold]" in text


def test_diff_shows_both_values_where_they_differ() -> None:
    before = report(target("tflite"), target("gone"))
    after = report(failing("tflite"), target("new"), environment={**before["environment"], "packages": {"torch": "2.13.1"}})
    text = printed(print_diff, before, after, width=140)
    for change in (
        "pass -> fail",
        "+0.12 pp -> +1.69 pp",
        "pass -> absent",
        "absent -> pass",
        "torch: 2.13.0 -> 2.13.1",
        "int8 static -> int8 dynamic",
    ):
        assert change in text


NO_LAYERS = {"layers": [], "samples": 0, "why": "the store was emptied."}


def test_explain_follows_the_metric_from_stage_to_stage() -> None:
    data = report(failing("tflite"))
    text = printed(print_explanation, data, data["targets"][0], NO_LAYERS)
    for part in ("91.60 %", "+0.09 pp", "89.91 %", "+1.69 pp", "aten.layer_norm", "drop 11.6 pp", "SQNR 38.4 dB"):
        assert part in text
    assert "no layers: the store was emptied." in text and "no slices: the recipe names none: see data.slices" in text


def test_explain_shows_the_time_and_does_not_send_its_reader_to_itself() -> None:
    kernels = target("tflite")["kernels"] | {"ops": [{"op": "QGemm", "name": f"head{i}", "type": "int8", "macs": 100 * i} for i in (1, 3)]}
    slow = gate("latency_ratio", "at most 0.2", "0.312", "fail", next_step="Run `edgepress explain RUN_DIR tflite` to see which ops.")
    data = report(target("tflite", kernels=kernels, gates=[slow]))
    text = " ".join(printed(print_explanation, data, data["targets"][0], NO_LAYERS, width=200).split())
    assert "time: p50 0.412 ms, p90 0.455 ms of a call with batch 1 on 1 thread; 0.31x (0.305 to 0.322) of fp32" in text
    assert "alone: 1.6x off this machine's int8 peak" in text and "QGemm head3 int8 75 % QGemm head1 int8 25 %" in text
    assert "at most 0.2" in text and "edgepress explain" not in text
    assert explanation(data, data["targets"][0], NO_LAYERS)["latency_ratio"]["value"] == 0.312
    untimed = report(target("tflite", latency_ms=None, latency_ratio=None, peak_distance=None))
    assert "no times: none were measured" in printed(print_explanation, untimed, untimed["targets"][0], NO_LAYERS)


def test_a_next_step_can_be_typed_as_it_is_printed() -> None:
    made = report(failing("tflite"))
    made["targets"][0]["gates"][0]["next_step"] = "Run `edgepress explain RUN_DIR tflite`."
    assert "`edgepress explain 'my runs/1' tflite`" in printed(print_run, made, Path("my runs/1"), width=200)


def test_explain_leaves_the_worst_target_of_the_run_to_that_target() -> None:
    data = report(target("tflite"))
    data["stages"].append({**data["stages"][0], "name": "quantize (worst target: other)", "drop": 9.0, "interval": [8.0, 10.0]})
    assert "worst target" not in printed(print_explanation, data, data["targets"][0], NO_LAYERS)


def test_explain_shows_the_slices_that_lost_most_and_the_layers_where_the_damage_starts() -> None:
    part = {"by": "digit", "samples": 90, "reference": 0.98, "interval": [-1.0, 5.0], "judged": True}
    slices = [{**part, "group": str(i), "value": 0.98 - i / 100, "drop": float(i)} for i in range(12)]
    layer = {"matched": "", "shape": [2], "max_abs_error": 0.1, "op": "linear"}
    found = [
        {**layer, "name": "mul", "layer": "head.attention", "sqnr_db": 7.25, "lost_db": 30.5},
        {**layer, "name": "linear_3", "layer": "head.mlp", "sqnr_db": 6.0, "lost_db": 2.0},
        {**layer, "name": "linear_4", "layer": "head.mlp", "sqnr_db": 5.0, "lost_db": 1.0},
        {**layer, "name": "relu", "layer": "tail", "sqnr_db": 9.0, "lost_db": 0.0},
    ]
    data = report(target("tflite", slices=slices))
    text = printed(print_explanation, data, data["targets"][0], {"layers": found, "samples": 32, "why": None}, width=100)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    first = lines.index("digit=11 90 98.00 % 87.00 % +11.00 pp -1.00 to 5.00")
    assert lines[first + 9].startswith("digit=2 ") and lines[first + 10] == "2 more lost less"
    worst = lines.index("head.attention linear 7.2 dB 30.5 dB")
    assert lines[worst + 1 : worst + 3] == ["head.mlp (linear_3) linear 6.0 dB 2.0 dB", "head.mlp (linear_4) linear 5.0 dB 1.0 dB"]
    assert "tail" not in text and "the 3 worst of 4 layers" in text and "on 32 validation samples" in text


def test_plan_counts_what_would_run() -> None:
    steps = [
        {"name": "data", "cached": True, "why": "", "seconds": 2.1},
        {"name": "export tflite", "cached": False, "why": "model.py changed", "seconds": 0.0},
    ]
    text = printed(print_plan, steps)
    assert "model.py changed" in text and "1 of 2 steps would run" in text
    assert "nothing would run" in printed(print_plan, steps[:1])


def row(usable: bool, timing: str | None = None) -> dict[str, Any]:
    support = {
        "usable": usable,
        "version": "1.0",
        "missing": None if usable else "no coremltools",
        "install": "pip install edgepress[coreml]",
    }
    names = {"name": "coreml", "device": "Apple device", "file": ".mlpackage", "precisions": ["fp32", "int8"]}
    return {**names, "export": support, "run": support, "timing": timing}


def test_targets_says_what_is_missing_and_how_to_get_it() -> None:
    text = printed(print_targets, [row(False)])
    assert "coreml cannot export here: no coremltools" in text and "run: pip install edgepress[coreml]" in text
    assert "cannot be timed here: no Mac" in printed(print_targets, [row(True, "no Mac")])


def test_doctor_shows_machine_and_packages() -> None:
    facts = {
        "python": "3.11",
        "system": "Linux",
        "cpu": "EPYC",
        "cores": 2,
        "gpu": None,
        "fingerprint": "ab",
        "packages": {"torch": "2.13.0"},
    }
    text = printed(print_doctor, {**facts, "targets": [row(True)]})
    assert all(word in text for word in ("EPYC", "torch", "2.13.0", "coreml")) and "gpu" not in text
    assert "compute capability 8.9" in printed(print_doctor, {**facts, "gpu": "NVIDIA, compute capability 8.9", "targets": []})


@pytest.mark.parametrize(("code", "word"), [(0, "INTACT"), (1, "DIFFERS"), (2, "CANNOT TELL"), (3, "UNDECIDED")])
def test_verification_ends_with_what_it_means(code: int, word: str) -> None:
    replay = {"target": "coreml", "outcome": "not here", "detail": "no Mac"}
    found = {"damage": [{"path": "tflite/run.py", "what": "changed"}], "replays": [replay], "files": 3, "exit_code": code}
    text = printed(print_verification, {**found, "signature": "invalid", "drift": None}, width=100)
    assert word in text and "tflite/run.py: changed" in text and "no runtime here for coreml" in text and "signature invalid" in text


def test_drift_is_shown_per_input_with_what_is_usual() -> None:
    side = {"mean": 0.25, "std": 1.0, "min": 0.0, "max": 1.0, "not_finite": 0}
    item = {"input": "image", "verdict": "drift", "live": {**side, "mean": 0.5}, "reference": side, "outside": 0.125, "why": "PSI 0.9"}
    found = {"damage": [], "replays": [], "files": 3, "exit_code": 1, "signature": "not checked", "drift": {"inputs": [item]}}
    text = printed(print_verification, found, width=120)
    assert all(word in text for word in ("image", "drift", "0.5", "0.25", "12.5 %", "PSI 0.9", "by whom was not asked"))
