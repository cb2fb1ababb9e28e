"""What was compared for a target with `method: best`, in the terminal: the winner first, then what it won against."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from edgepress.report import numbers
from edgepress.report.present import Json, drop_unit, scheme_label
from edgepress.report.terminal import plain, table


def candidate_tables(report: Json) -> Iterator[Table]:
    """One table per target whose candidates were compared."""
    for target in report["targets"]:
        if target.get("best"):
            yield candidate_table(target, drop_unit(report))


def candidate_table(target: Json, unit: str) -> Table:
    """Every candidate with its drop on the selection share, latency ratio and size, or why it has none."""
    title = f"{target['name']}: {len(target['tried'])} candidates ({target['best']['rule']})"
    made = table(title, candidate="left", drop="right", vs_fp32="right", size="right", why="left")
    for item in target["tried"]:
        ratio = item["latency_ratio"]
        made.add_row(
            plain(scheme_label(item["scheme"]), "bold green" if item["shipped"] else ""),
            _two(numbers.drop(item["drop_on_selection"], unit), numbers.drop_interval(item["interval"], unit)),
            _two(numbers.ratio(ratio["value"]), numbers.interval(ratio["interval"])) if ratio else plain(numbers.NONE),
            plain(numbers.size(item["size_bytes"])),
            plain(f"{'shipped: ' if item['shipped'] else ''}{item['why'] or ''}"),
        )
    return made


def _two(value: str, below: str) -> Text:
    """A value, and in a second line what it is to be read with."""
    return plain(value).append(f"\n{below}" if below else "", "dim")
