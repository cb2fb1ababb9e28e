"""What is printed in the terminal after a run: the verdict table, what to look at, the verdict. On stdout, coloured only on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.report import numbers
from edgepress.report.candidates import candidate_tables
from edgepress.report.layers import layer_sentences
from edgepress.report.peak import peak_sentence
from edgepress.report.present import (
    TargetView,
    compressed_sentence,
    diverged_sentences,
    drop_unit,
    headline,
    parity_sentences,
    problems,
    pruned_sentences,
    views,
)
from edgepress.report.slices import slice_sentences
from edgepress.report.terminal import STYLES, bullet, plain, stdout, table, tidy, verdict_text

Json = Mapping[str, Any]
_ROOMY = 110


def print_run(report: Json, run_dir: Path, console: Console | None = None) -> None:
    """The table, the gates that did not pass with their next steps, the verdict, and where the report is."""
    out = console or stdout()
    if any("report" in stage for stage in report["stages"]):
        out.print(_stage_table(report))
        for warning in diverged_sentences(report):
            out.print(plain(warning, "yellow"))
        for gain in (*pruned_sentences(report), compressed_sentence(report)):
            if gain:
                out.print(plain(gain, "dim"))
    out.print(_run_table(report, roomy=out.width >= _ROOMY))
    if out.width < _ROOMY:
        _executors(out, views(report))
    for sentence in (*slice_sentences(report), *layer_sentences(report)):
        out.print(plain(sentence, "dim"))
    if distances := peak_sentence(report):
        out.print(plain(distances, "dim"))
    for candidates in candidate_tables(report):
        out.print(candidates)
    for warning in parity_sentences(report):
        out.print(plain(warning, "yellow"))
    for row, verdict, what, step in problems(report):
        if verdict in ("accepted", "waived"):
            step = None  # the recipe knows
        elif step:
            step = step.replace("RUN_DIR", shlex.quote(str(run_dir)))
        out.print(bullet(verdict, f"{row.name}: {what}", step))
    out.print()
    out.print(
        plain(f"{report['verdict'].upper()}", f"bold {STYLES[report['verdict']]}").append(f"  {tidy(headline(report))}", "not bold default")
    )
    out.print(plain("report  ", "dim").append(tidy(str(run_dir / "report.html")), "default"), soft_wrap=True)


def _stage_table(report: Json) -> Table:
    """What each compression step made of the model, before any runtime had it."""
    made = table(stage="left", metric="right", drop="right", parameters="right", MACs="right", time="right")
    unit, first = drop_unit(report), report["stages"][0]
    for stage in report["stages"]:
        sizes = [
            _two(numbers.count(stage[key]), numbers.ratio(stage[key] / first[key]) if first[key] else "") for key in ("parameters", "macs")
        ]
        drop = (
            _two(numbers.drop(stage["drop"], unit), numbers.drop_interval(stage["interval"], unit))
            if "drop" in stage
            else plain(numbers.NONE)
        )
        cells = (plain(stage["name"], "bold"), plain(numbers.metric(stage["metric"], unit)), drop, *sizes)
        made.add_row(*cells, plain(numbers.seconds(stage["seconds"])))
    return made


def _run_table(report: Json, roomy: bool) -> Table:
    """Eight columns; on a narrow terminal six, with the scheme under the target's name and what executed it below the table."""
    names = ("target", "verdict", "scheme", "drop", "vs_fp32", "size", "int8_MACs", "executed_by")
    left = ("target", "verdict", "scheme", "executed_by")
    shown = [name for name in names if roomy or name not in ("scheme", "executed_by")]
    made = table(**{name: "left" if name in left else "right" for name in shown})
    for row in views(report):
        cells = _cells(row, drop_unit(report), roomy)
        made.add_row(*(cells[name] for name in shown))
    return made


def _cells(row: TargetView, unit: str, roomy: bool) -> dict[str, Text]:
    metric, ratio = row.data["metric"], row.data["latency_ratio"]
    none = plain(numbers.NONE)
    return {
        "target": plain(row.name, "bold") if roomy else plain(row.name, "bold").append(f"\n{tidy(row.scheme)}", "not bold dim"),
        "verdict": verdict_text(row.verdict),
        "scheme": plain(row.scheme),
        "drop": _two(numbers.drop(metric["drop"], unit), numbers.drop_interval(metric["interval"], unit)) if metric else none,
        "vs_fp32": _two(numbers.ratio(ratio["value"]), numbers.interval(ratio["interval"])) if ratio else none,
        "size": _two(numbers.size(row.loaded_bytes), numbers.ratio(row.size_ratio)) if row.loaded_bytes is not None else none,
        "int8_MACs": plain(numbers.percent(row.integer_share)),
        "executed_by": plain(row.executed_by),
    }


def _two(value: str, below: str) -> Text:
    """A value, and in a second line what it is to be read with."""
    return plain(value).append(f"\n{below}", "dim")


def _executors(out: Console, rows: Sequence[TargetView]) -> None:
    grouped: dict[str, list[str]] = {}
    for row in rows:
        grouped.setdefault(row.executed_by, []).append(row.name)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold", max_width=28, style="dim")
    grid.add_column(overflow="fold")
    for executor, names in grouped.items():
        grid.add_row(plain(", ".join(names)), plain(executor))
    out.print(plain("executed by", "dim"))
    out.print(grid)
    out.print()
