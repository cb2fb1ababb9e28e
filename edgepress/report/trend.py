"""One line per target over many runs: what became of drop, latency ratio and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edgepress.bundle.digest import loaded_bytes
from edgepress.report import numbers
from edgepress.report.pictures import round_steps
from edgepress.report.present import Json, drop_unit, shown_target_verdict

#: Geometry in SVG user units.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, HEIGHT = 420.0, 62.0, 408.0, 14.0, 128.0, 150.0

#: An axis is at least this long, in the fact's unit.
_LEAST = 0.1


@dataclass(frozen=True)
class Dot:
    """One run: where, its verdict, what it says; `band` is the interval."""

    x: float
    y: float
    verdict: str
    words: str
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Trend:
    """One fact of one target.

    Attributes:
        lines: points as SVG writes them; broken where the fact is missing or runs do not compare.
        up: (y, text) along the axis.
        latest: the newest value.
        alt: everything the picture shows, in words.
    """

    title: str
    dots: tuple[Dot, ...]
    lines: tuple[str, ...]
    up: tuple[tuple[float, str], ...]
    latest: str
    alt: str


@dataclass(frozen=True)
class _Fact:
    """What is drawn of a target: how to read value and interval, how to say them, and whether machines differ in it."""

    title: str
    read: Callable[[Json], tuple[float, Sequence[float] | None] | None]
    text: Callable[[float], str]
    tick: Callable[[float], str]
    of_machine: bool = False


def trends(runs: Sequence[Json]) -> list[Trend]:
    """Drop, latency ratio and size of every target of any run, in the order of its first appearance.

    Args:
        runs: reports, the oldest first, at least one. A line of latencies is broken where the machine's fingerprint changes.
    """
    unit = drop_unit(runs[-1])
    facts = (
        _Fact("drop", _drop, lambda value: numbers.drop(value, unit), lambda value: f"{value:g} {unit}"),
        _Fact("latency over fp32", _ratio, numbers.ratio, lambda value: f"{value:g}x", of_machine=True),
        _Fact("size", _size, numbers.size, numbers.size),
    )
    names = dict.fromkeys(target["name"] for run in runs for target in run["targets"])
    return [trend for name in names for fact in facts if (trend := _trend(runs, name, fact)) is not None]


def _trend(runs: Sequence[Json], name: str, fact: _Fact) -> Trend | None:
    found = list(_found(runs, name, fact))
    if not found:
        return None
    ends = [number for _, _, value, interval in found for number in (value, *(interval or ()))]
    steps = round_steps(min(0.0, *ends), max(_LEAST, *ends))

    def above(value: float) -> float:
        return round(BOTTOM - (value - steps[0]) / (steps[-1] - steps[0]) * (BOTTOM - TOP), 1)

    dots: list[Dot] = []
    lines: list[list[str]] = []
    before: int | None = None
    for place, target, value, interval in found:
        x = round(LEFT + (RIGHT - LEFT) * (place / (len(runs) - 1) if len(runs) > 1 else 0.5), 1)
        band = (above(interval[1]), above(interval[0])) if interval else None
        words = f"{runs[place]['started'][:16].replace('T', ' ')}: {fact.text(value)}, {shown_target_verdict(target)}"
        dots.append(Dot(x, above(value), shown_target_verdict(target), words, band))
        if before is None or before != place - 1 or (fact.of_machine and _machine(runs[before]) != _machine(runs[place])):
            lines.append([])
        lines[-1].append(f"{x},{above(value)}")
        before = place
    title = f"{name}: {fact.title}"
    drawn = tuple(" ".join(points) for points in lines if len(points) > 1)
    up = tuple((above(step), fact.tick(step)) for step in steps)
    alt = f"{title}. " + " ".join(f"{dot.words}." for dot in dots)
    return Trend(title, tuple(dots), drawn, up, fact.text(found[-1][2]), alt)


def _found(runs: Sequence[Json], name: str, fact: _Fact) -> Iterator[tuple[int, Json, float, Sequence[float] | None]]:
    """(place of the run, target, value, interval) where the fact is known."""
    for place, run in enumerate(runs):
        target = next((target for target in run["targets"] if target["name"] == name), None)
        read = fact.read(target) if target else None
        if target is not None and read is not None:
            yield place, target, *read


def _machine(run: Json) -> str:
    return str(run["environment"]["fingerprint"])


def _drop(target: Json) -> tuple[float, Sequence[float] | None] | None:
    metric = target["metric"]
    return (metric["drop"], metric["interval"]) if metric else None


def _ratio(target: Json) -> tuple[float, Sequence[float] | None] | None:
    ratio = target["latency_ratio"]
    return (ratio["value"], ratio["interval"]) if ratio else None


def _size(target: Json) -> tuple[float, Sequence[float] | None] | None:
    artifact = target["artifact"]
    return (float(loaded_bytes(artifact["size_bytes"], target.get("facts"))), None) if artifact else None
