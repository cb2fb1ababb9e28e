"""Accuracy against latency against size: everything that was made, what shipped, and the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepress.report import numbers
from edgepress.report.pictures import TOP, round_steps
from edgepress.report.present import Json, TargetView, drop_unit, scheme_label

#: Geometry in SVG user units: the field on the left, the legend on the right.
WIDTH, LEFT, RIGHT, HEIGHT = 860.0, 58.0, 470.0, 300.0
BOTTOM = HEIGHT - 40
#: The field is at least this high: a millionth of a point is no difference.
_LEAST = 0.1
#: Radius of the smallest and of the largest file.
_SMALL, _LARGE = 8.0, 18.0


@dataclass(frozen=True)
class Point:
    """One file: where it is, how large its dot is, its number where it shipped."""

    x: float
    y: float
    radius: float
    verdict: str
    number: int | None
    words: str


@dataclass(frozen=True)
class Pareto:
    """The picture; ticks are (position, text)."""

    points: tuple[Point, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    one: float
    zero: float
    caption: str
    legend: tuple[tuple[int, str, str, str], ...]
    alt: str


@dataclass(frozen=True)
class _File:
    name: str
    ratio: float
    drop: float
    size: float
    verdict: str
    number: int | None


def pareto(report: Json, rows: Sequence[TargetView]) -> Pareto | None:
    """Everything whose drop, latency and size are known; None where that is nothing."""
    files, unit = list(_files(rows)), drop_unit(report)
    if not files:
        return None
    across = round_steps(0.0, max(1.0, *(file.ratio for file in files)))
    up = round_steps(min(0.0, *(file.drop for file in files)), max(_LEAST, *(file.drop for file in files)))
    largest = max(file.size for file in files)

    def place(file: _File) -> Point:
        radius = max(_SMALL, _LARGE * math.sqrt(file.size / largest))
        return Point(_along(across, file.ratio), _above(up, file.drop), round(radius, 1), file.verdict, file.number, _words(file, unit))

    missing = [row.name for row in rows if row.name not in {file.name for file in files if file.number}]
    shown = unit or "the metric's unit"
    caption = f"Latency over fp32 in the same runtime, drop in {shown}, area for size. Down and left is better."
    if missing:
        caption += f" Not measured here: {', '.join(missing)}."
    if any(file.number is None for file in files):
        caption += " Hollow: candidates that did not ship."
    points = tuple(place(file) for file in sorted(files, key=lambda file: (file.number is not None, -file.size)))
    legend = tuple((file.number, file.name, file.verdict, _figures(file, unit)) for file in files if file.number is not None)
    return Pareto(
        points,
        tuple((_along(across, step), f"{step:g}x") for step in across),
        tuple((_above(up, step), f"{step:g}") for step in up),
        _along(across, 1.0),
        _above(up, 0.0),
        caption,
        legend,
        " ".join(["Accuracy, latency and size.", caption, *(f"{point.words}." for point in points)]),
    )


def _files(rows: Sequence[TargetView]) -> Iterator[_File]:
    for number, row in enumerate(rows, 1):
        metric, ratio = row.data["metric"], row.data["latency_ratio"]
        if metric and ratio and row.loaded_bytes:
            yield _File(row.name, ratio["value"], metric["drop"], float(row.loaded_bytes), row.verdict, number)
        for other in row.data.get("tried") or ():
            if (
                other.get("latency_ratio")
                and other.get("size_bytes")
                and other["drop_on_selection"] is not None
                and not other.get("shipped")
            ):
                figures = (other["latency_ratio"]["value"], other["drop_on_selection"], float(other["size_bytes"]))
                yield _File(f"{row.name}, {scheme_label(other['scheme'])}", *figures, "plain", None)


def _words(file: _File, unit: str) -> str:
    return f"{file.name}: {_figures(file, unit)}"


def _figures(file: _File, unit: str) -> str:
    return f"{numbers.ratio(file.ratio)}, {numbers.drop(file.drop, unit)}, {numbers.size(file.size)}"


def _along(steps: Sequence[float], value: float) -> float:
    return round(LEFT + (value - steps[0]) / (steps[-1] - steps[0]) * (RIGHT - LEFT), 1)


def _above(steps: Sequence[float], value: float) -> float:
    return round(BOTTOM - (value - steps[0]) / (steps[-1] - steps[0]) * (BOTTOM - TOP), 1)
