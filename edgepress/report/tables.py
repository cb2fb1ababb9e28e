"""The tables of the other commands: plan, targets, doctor, verify, diff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.gate_plan import EXPECTED, PlannedGate
from edgepress.report import numbers
from edgepress.report.compare import COLUMNS, Change, compare_runs
from edgepress.report.terminal import STYLES, bullet, plain, stdout, table, tidy

Json = Mapping[str, Any]
_OUTCOMES = {"match": "pass", "mismatch": "fail", "failed": "error", "damaged": "fail", "not here": "undecided"}
_DRIFTS = {"same": "pass", "drift": "fail", "undecided": "undecided"}


def print_plan(steps: Sequence[Json], console: Console | None = None) -> None:
    """Every step: stored or to be run, why, and how long it took last time.

    Args:
        steps: `{"name", "cached", "why", "seconds"}`.
        console: where to print; stdout by default.
    """
    out = console or stdout()
    made = table(step="left", state="left", why="left", last="right")
    for step in steps:
        state = plain("stored", "green") if step["cached"] else plain("run", "yellow")
        made.add_row(plain(step["name"]), state, plain(step["why"]), plain(numbers.seconds(step["seconds"]) if step["seconds"] else ""))
    out.print(made)
    waiting = sum(not step["cached"] for step in steps)
    out.print(plain(f"{waiting} of {len(steps)} steps would run" if waiting else f"all {len(steps)} steps are stored; nothing would run"))


def print_gate_plan(
    original: Json, planned: Sequence[PlannedGate], smallest: Mapping[float, float], console: Console | None = None
) -> None:
    """What the validation samples can decide, and what every accuracy gate needs.

    Args:
        original: what scoring the float original returned.
        planned: the gates of the recipe.
        smallest: the smallest drop that can be gated, in pp, by the share of samples that change sides.
        console: where to print; stdout by default.
    """
    out = console or stdout()
    samples = numbers.count(original["samples"])
    out.print(plain(f"{samples} validation samples, float original at {numbers.metric(original['value'])}"))
    made = table(**{"samples that change sides": "right", "smallest drop that can be gated": "right"})
    for share, drop in smallest.items():
        made.add_row(numbers.percent(share), f"{drop:.2f} pp")
    out.print(made)
    made = table(target="left", limit="right", needs="right", decidable="left")
    for gate in planned:
        needed = numbers.count(gate.needed) if gate.needed else "more than anyone has"
        made.add_row(plain(gate.target, "bold"), f"{gate.limit:g} pp", needed, _yes(gate.decidable))
    out.print(made)
    most, least = max(gate.smallest for gate in planned), min(gate.limit for gate in planned)
    answer = f"{samples} samples can gate {most:.2f} pp" + ("" if least >= most else f", not {least:g} pp")
    out.print(plain(f"{answer}: in four of five runs without a true drop, if {EXPECTED:.0%} of the samples change sides"))


def print_targets(rows: Sequence[Json], console: Console | None = None) -> None:
    """The catalog: what can be exported, run and timed here.

    Args:
        rows: `{"name", "device", "file", "precisions", "export", "run", "timing"}` as `edgepress targets --json` prints them.
        console: where to print; stdout by default.
    """
    out = console or stdout()
    made = table(target="left", device="left", file="left", precisions="left", export="left", run="left", time="left")
    for row in rows:
        cells = [plain(row["name"], "bold"), plain(row["device"]), plain(row["file"]), plain(" ".join(row["precisions"]))]
        timing = _yes(row["run"]["usable"] and row["timing"] is None)
        made.add_row(*cells, _yes(row["export"]["usable"]), _yes(row["run"]["usable"]), timing)
    out.print(made)
    _missing(out, rows)


def print_doctor(facts: Json, console: Console | None = None) -> None:
    """This machine, the packages, and what every target lacks.

    Args:
        facts: as `edgepress doctor --json` prints them.
        console: where to print; stdout by default.
    """
    out = console or stdout()
    made = table(machine="left", value="left")
    made.show_header = False
    for name in ("python", "system", "cpu", "cores", "gpu", "fingerprint"):
        if facts[name] is not None:
            made.add_row(plain(name, "dim"), plain(facts[name]))
    out.print(made)
    packages = table(package="left", version="left")
    for name, version in sorted(facts["packages"].items()):
        packages.add_row(plain(name), plain(version))
    out.print(packages)
    print_targets(facts["targets"], out)


def print_verification(found: Json, console: Console | None = None) -> None:
    """What `edgepress verify` found: damaged files, then the replays, then one line.

    Args:
        found: `Verification.to_json()`.
        console: where to print; stdout by default.
    """
    out = console or stdout()
    for item in found["damage"]:
        out.print(bullet("fail", f"{item['path']}: {item['what']}"))
    if found["replays"]:
        made = table(target="left", replay="left", detail="left")
        for replay in found["replays"]:
            made.add_row(
                plain(replay["target"], "bold"), plain(replay["outcome"], STYLES[_OUTCOMES[replay["outcome"]]]), plain(replay["detail"])
            )
        out.print(made)
    if found["drift"]:
        out.print(_drift_table(found["drift"]))
    out.print(_verification_line(found))


def print_diff(before: Json, after: Json, console: Console | None = None) -> None:
    """Two runs, target by target; `before -> after` where a number changed."""
    out, found = console or stdout(), compare_runs(before, after)
    made = table(target="left", **{name: "left" if name in ("verdict", "scheme") else "right" for name in COLUMNS})
    for row in found.rows:
        made.add_row(
            plain(row.target, "bold"), *(_arrow(change, STYLES if name == "verdict" else {}) for name, change in row.changes.items())
        )
    out.print(made)
    out.print(plain("run  ", "dim").append_text(_arrow(found.verdict, STYLES)))
    for what in found.environment:
        out.print(plain(what, "dim"))


def _arrow(change: Change, styles: Mapping[str, str]) -> Text:
    """`before -> after`, or the one value when nothing changed."""
    style = styles.get(change.after, "")
    if not change.changed:
        return plain(change.after, style or "dim")
    return plain(f"{change.before} -> ").append(tidy(change.after), style or "bold")


def _yes(usable: bool) -> Text:
    return plain("yes", "green") if usable else plain("no", "yellow")


def _missing(out: Console, rows: Sequence[Json]) -> None:
    for row in rows:
        for what in ("export", "run"):
            support = row[what]
            if not support["usable"]:
                step = f"run: {support['install']}" if support["install"] else None
                out.print(bullet("undecided", f"{row['name']} cannot {what} here: {support['missing'] or 'reason unknown'}", step))
        if row["run"]["usable"] and row["timing"]:
            out.print(bullet("undecided", f"{row['name']} cannot be timed here: {row['timing']}"))
        second = row.get("second_runtime")
        if second and not second["usable"]:
            step = f"run: {second['install']}" if second["install"] else None
            out.print(bullet("undecided", f"{row['name']}: second runtime {second['name']}: {second['missing'] or 'not here'}", step))


def _verification_line(found: Json) -> Text:
    code, replays = found["exit_code"], found["replays"]
    matched = sum(replay["outcome"] == "match" for replay in replays)
    absent = [replay["target"] for replay in replays if replay["outcome"] == "not here"]
    words = (("INTACT", "bold green"), ("DIFFERS", "bold red"), ("CANNOT TELL", "bold yellow"), ("UNDECIDED", "bold yellow"))
    word = plain(*words[code])
    text = f"  {found['files']} files, {len(found['damage'])} damaged; {matched} of {len(replays)} replays match"
    text += {"absent": "", "not checked": "; signed, by whom was not asked"}.get(found["signature"], f"; signature {found['signature']}")
    return word.append(tidy(text + (f"; no runtime here for {', '.join(absent)}" if absent else "")), "not bold default")


def _drift_table(drift: Json) -> Table:
    made = table(input="left", inputs="left", mean="right", calibration="right", outside="right", detail="left")
    for item in drift["inputs"]:
        live, reference = (numbers.NONE if side["mean"] is None else f"{side['mean']:.4g}" for side in (item["live"], item["reference"]))
        cells = [plain(live), plain(reference), plain(numbers.percent(item["outside"], 1)), plain(item["why"])]
        made.add_row(plain(item["input"], "bold"), plain(item["verdict"], STYLES[_DRIFTS[item["verdict"]]]), *cells)
    return made
