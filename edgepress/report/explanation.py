"""Where the accuracy of one target went, stage by stage, slice by slice, layer by layer; and its time. What `edgepress explain` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edgepress.report import numbers
from edgepress.report.candidates import candidate_table
from edgepress.report.peak import distance_text
from edgepress.report.present import Json, drop_unit, problems, scheme_label, views
from edgepress.report.slices import slice_name
from edgepress.report.terminal import bullet, plain, stdout, table, tidy, verdict_text

#: Rows of a table in the terminal; JSON has them all.
_SHOWN = 10
#: What a report says of a target's time.
_TIMES = ("latency_ms", "latency_ratio", "pruned_latency_ratio", "peak_distance")
#: Why a target has no slices, where its recipe names none.
_NO_SLICES = "the recipe names none: see data.slices"


def explanation(report: Json, target: Json, layers: Json) -> dict[str, Any]:
    """What is known of a target, as plain data.

    Args:
        report: of a run.
        target: one of its targets.
        layers: `explain.layers_of` it.

    Returns:
        `target`, `verdict`, `scheme`, `unit` of every drop; `stages` in the order of the run; `slices` and `layers`, the worst first, each
        beside why there are none; `parity`, `latency_ms`, `latency_ratio`, `pruned_latency_ratio`, `peak_distance`, `kernels`, `tried` and
        `float_ops` as in report.json.
    """
    row = next(view for view in views(report) if view.name == target["name"])
    slices = sorted(target.get("slices") or (), key=lambda part: -part["drop"])
    return {
        "target": row.name,
        "verdict": row.verdict,
        "scheme": row.scheme,
        "unit": drop_unit(report),
        "stages": _stages(report, target),
        "slices": slices,
        "why_no_slices": None if slices else "nothing was measured" if target["error"] else _NO_SLICES,
        "layers": layers["layers"],
        "layer_samples": layers["samples"],
        "why_no_layers": layers["why"],
        **{name: target.get(name) for name in ("parity", *_TIMES, "kernels", "tried", "float_ops")},
    }


def print_explanation(report: Json, target: Json, layers: Json, console: Console | None = None) -> None:
    """The same as tables.

    Args:
        report: of a run.
        target: one of its targets.
        layers: `explain.layers_of` it.
        console: where to print; stdout by default.
    """
    out, found = console or stdout(), explanation(report, target, layers)
    unit = found["unit"]
    head = plain(f"{found['target']}  ", "bold").append_text(verdict_text(found["verdict"]))
    out.print(head.append(tidy(f"  {found['scheme']} for {target['device']}")))
    out.print(_stage_table(found["stages"], unit))
    if found["slices"]:
        out.print(_slice_table(found["slices"], unit))
    else:
        out.print(plain(f"no slices: {found['why_no_slices']}", "dim"))
    _print_layers(out, found)
    _print_parity(out, target)
    _print_time(out, target)
    _print_lists(out, target, unit)
    for view, verdict, what, step in problems(report):
        if view.name == found["target"]:
            out.print(bullet(verdict, what, None if step and "`edgepress explain" in step else step))  # the reader is here


def _stages(report: Json, target: Json) -> list[dict[str, Any]]:
    """Metric and drop after every stage, the artifact last; the row that a report has for its worst target may be another one's."""
    original, scale = report["reference"]["metric"]["value"], 100 if drop_unit(report) == "pp" else 1
    own = [stage for stage in report["stages"] if "report" in stage or "drop" not in stage]
    found = [{"stage": stage["name"], "metric": stage["metric"], "drop": (original - stage["metric"]) * scale} for stage in own]
    if target["metric"]:
        name = f"artifact in {target['executed_by'] or 'nothing'}"
        found.append({"stage": name, "metric": target["metric"]["value"], "drop": target["metric"]["drop"]})
    return found


def _stage_table(stages: Sequence[Json], unit: str) -> Table:
    made = table(stage="left", metric="right", drop="right")
    for stage in stages:
        made.add_row(plain(stage["stage"]), plain(numbers.metric(stage["metric"], unit)), plain(numbers.drop(stage["drop"], unit)))
    return made


def _slice_table(slices: Sequence[Json], unit: str) -> Table:
    """The groups that lost most; one with too few samples to be judged is dim."""
    made = table(slice="left", samples="right", original="right", artifact="right", drop="right", interval="right")
    for part in slices[:_SHOWN]:
        values = (numbers.metric(part["reference"], unit), numbers.metric(part["value"], unit), numbers.drop(part["drop"], unit))
        cells = (slice_name(part), f"{part['samples']:,}", *values, numbers.drop_interval(part["interval"], unit))
        made.add_row(*(plain(cell, "" if part["judged"] else "dim") for cell in cells))
    if len(slices) > _SHOWN:
        made.add_row(plain(f"{len(slices) - _SHOWN} more lost less", "dim"))
    return made


def _print_layers(out: Console, found: Json) -> None:
    """The layers at which most is lost."""
    if found["why_no_layers"]:
        out.print(plain(f"no layers: {found['why_no_layers']}", "dim"))
        return
    worst = [layer for layer in found["layers"] if layer["lost_db"] > 0][:_SHOWN]
    places = Counter((layer["layer"], layer["op"]) for layer in found["layers"])
    made = table(**{"layer": "left", "op": "left", "SQNR": "right", "lost here": "right"})
    for layer in worst:
        once = places[layer["layer"], layer["op"]] == 1
        name = layer["layer"] if once else f"{layer['layer']} ({layer['name']})"
        made.add_row(*map(plain, (name, layer["op"], f"{layer['sqnr_db']:.1f} dB", f"{layer['lost_db']:.1f} dB")))
    out.print(made)
    which = f"the {len(worst)} worst of {len(found['layers'])} layers, integers against float in PyTorch"
    out.print(plain(f"{which}, on {found['layer_samples']} validation samples", "dim"))


def _print_parity(out: Console, target: Json) -> None:
    if parity := target["parity"]:
        out.print(
            plain(
                f"against the compressed PyTorch model: largest error {parity['max_abs_error']:.3g}, SQNR {parity['sqnr_db']:.1f} dB, "
                f"same argmax on {numbers.percent(parity['argmax_agreement'], 2)}"
            )
        )
    if kernels := target["kernels"]:
        fp8 = f"{kernels['fp8']} fp8, " if kernels.get("fp8") else ""
        out.print(
            plain(f"kernels: {kernels['int8']} int8, {fp8}{kernels['fp16']} fp16, {kernels['fp32']} fp32, {kernels['unknown']} unknown")
        )


def _print_time(out: Console, target: Json) -> None:
    """How long a call takes, beside the float model and the machine's peak, and which kernels have most to do."""
    latency, ratio, distance = (target.get(name) for name in ("latency_ms", "latency_ratio", "peak_distance"))
    if not latency:
        out.print(plain("no times: none were measured", "dim"))
        return
    slower = ", ".join(f"{name} {numbers.milliseconds(latency[name])}" for name in ("p50", "p90", "p99") if latency[name] is not None)
    text = f"time: {slower} of a call with batch {latency['batch']} on {latency['threads']} thread{'' if latency['threads'] == 1 else 's'}"
    if ratio:
        text += f"; {numbers.ratio(ratio['value'])} ({numbers.interval(ratio['interval'], 3)}) of {ratio['reference']}"
    out.print(plain(text))
    if distance:
        out.print(plain(f"against its multiply-accumulates alone: {distance_text(distance)}"))
    ops = [op for op in (target["kernels"] or {}).get("ops", ()) if op.get("macs")]
    if not ops:
        return
    total = sum(op["macs"] for op in ops)
    made = table(kernel="left", name="left", type="left", **{"share of MACs": "right"})
    for op in sorted(ops, key=lambda op: -int(op["macs"]))[:_SHOWN]:
        made.add_row(*map(plain, (op["op"], op["name"], op["type"], numbers.percent(op["macs"] / total))))
    out.print(made)
    out.print(plain("shares of the work: the times of single kernels are not measured", "dim"))


def _print_lists(out: Console, target: Json, unit: str) -> None:
    if target.get("best"):
        out.print(candidate_table(target, unit))
    elif target.get("tried"):
        tried = table(scheme="left", drop="right", held="left", why="left")
        for item in target["tried"]:
            cells = [
                scheme_label(item["scheme"]),
                numbers.drop(item["drop_on_selection"], unit),
                "yes" if item["held"] else "no",
                item["why"] or "",
            ]
            tried.add_row(*map(plain, cells))
        out.print(tried)
    if target.get("float_ops"):
        left = table(left_in_float="left", count="right", reason="left")
        for op in target["float_ops"]:
            left.add_row(*map(plain, (op["op"], op["count"], op["reason"])))
        out.print(left)
