"""Where everything goes in the pictures of the page: one dot or bar per target, its interval, its gate's limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepress.report import numbers
from edgepress.report.present import Json, TargetView, drop_unit, shown_verdict

#: Geometry in SVG user units.
WIDTH, LEFT, RIGHT, TOP, ROW = 420.0, 104.0, 330.0, 22.0, 28.0
_LABEL_LETTERS = 15


@dataclass(frozen=True)
class Mark:
    """One row of a picture; positions are in user units, None where there is nothing to draw; coloured by the gate it shows.

    `band` is what it is compared with, drawn behind it.
    """

    label: str
    verdict: str
    y: float
    x: float | None
    low: float | None
    high: float | None
    limit: float | None
    text: str
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """One panel.

    Attributes:
        bars: bars from zero instead of dots with intervals.
        reference: x of the line that stands for the original, with its caption.
        ticks: (x, text) along the axis.
        alt: everything the picture shows, in words.
    """

    title: str
    caption: str
    bars: bool
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float
    reference: float | None
    reference_text: str
    height: float
    alt: str


@dataclass(frozen=True)
class Fact:
    """What one panel says of one row, in the panel's unit; `band` as in `Mark`."""

    name: str
    value: float | None
    interval: Sequence[float] | None
    text: str
    verdict: str = "plain"
    limit: float | None = None
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """Title, caption and axis of a picture; `reference` is where the original stands."""

    title: str
    caption: str
    bars: bool
    tick: Callable[[float], str]
    reference: float | None = None
    reference_text: str = ""
    end: float | None = None


def pictures(report: Json, rows: Sequence[TargetView]) -> list[Picture]:
    """The panels that have anything to show."""
    unit = drop_unit(report)
    fp32 = float(report["reference"]["size_bytes"])
    panels = [
        (
            Panel("Metric drop", f"{unit} against the fp32 original, with its interval. Left is better.", False, _tick, 0.0, "no drop"),
            _drops,
        ),
        (
            Panel("Latency ratio", "Paired with fp32 in the same runtime, with its interval. Left is faster.", False, _tick, 1.0, "fp32"),
            _ratios,
        ),
        (Panel("Size", "What one device loads.", True, numbers.size, fp32, "fp32"), _sizes),
        (
            Panel(
                "Latency distribution",
                "Middle nine tenths of single inferences, over the median of fp32's, which are grey. Left is faster.",
                False,
                _tick,
                1.0,
                "fp32",
            ),
            _spread,
        ),
        (Panel("Integer arithmetic", "Share of multiply-accumulates that ran in integers.", True, numbers.percent, end=1.0), _shares),
    ]
    drawn = [(panel, [facts(row, unit) for row in rows]) for panel, facts in panels]
    return [draw(panel, facts) for panel, facts in drawn if any(fact.value is not None for fact in facts)]


def _judged(gate: Json | None) -> tuple[str, float | None]:
    """Verdict and limit of the gate that a row shows."""
    return (shown_verdict(gate), numbers.limit(gate["limit"])) if gate else ("plain", None)


def _drops(row: TargetView, unit: str) -> Fact:
    metric, gate = row.data["metric"], _judged(row.gate("accuracy_drop", "metric_drop"))
    if not metric:
        return Fact(row.name, None, None, "not measured", *gate)
    return Fact(row.name, metric["drop"], metric["interval"], numbers.drop(metric["drop"], unit), *gate)


def _ratios(row: TargetView, _: str) -> Fact:
    ratio, gate = row.data["latency_ratio"], _judged(row.gate("latency_ratio"))
    if not ratio:
        return Fact(row.name, None, None, "not measured", *gate)
    return Fact(row.name, ratio["value"], ratio["interval"], numbers.ratio(ratio["value"]), *gate)


def _sizes(row: TargetView, _: str) -> Fact:
    gate = _judged(row.gate("size"))
    if row.loaded_bytes is None:
        return Fact(row.name, None, None, "no artifact", *gate)
    return Fact(row.name, float(row.loaded_bytes), None, numbers.size(row.loaded_bytes), *gate)


def _spread(row: TargetView, _: str) -> Fact:
    found = (row.data["latency_ms"] or {}).get("spread")
    if not found:
        return Fact(row.name, None, None, "not measured")
    (low, middle, high), (first, fp32, last) = found["candidate"], found["reference"]
    return Fact(row.name, middle / fp32, (low / fp32, high / fp32), numbers.milliseconds(middle), band=(first / fp32, last / fp32))


def _shares(row: TargetView, _: str) -> Fact:
    share = row.integer_share
    return Fact(row.name, share, None, "not known" if share is None else numbers.percent(share))


def draw(panel: Panel, facts: Sequence[Fact]) -> Picture:
    """Place everything."""
    low, high = _domain(panel, facts)
    steps = round_steps(low, high)
    low, high = min(low, steps[0]), max(high, steps[-1])

    def place(value: float | None) -> float | None:
        return None if value is None else round(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), 1)

    marks = []
    for index, fact in enumerate(facts):
        bounds = fact.interval or (None, None)
        y = TOP + ROW * (index + 0.5)
        label = fact.name if len(fact.name) <= _LABEL_LETTERS else fact.name[: _LABEL_LETTERS - 1] + "…"
        ends = (place(bounds[0]), place(bounds[1]))
        band = (place(fact.band[0]) or LEFT, place(fact.band[1]) or LEFT) if fact.band else None
        marks.append(Mark(label, fact.verdict, y, place(fact.value), *ends, place(fact.limit), fact.text, band))
    zero = place(max(low, 0.0))
    ticks = tuple((place(step) or LEFT, panel.tick(step)) for step in steps)
    height = TOP + ROW * len(facts) + 26
    alt = f"{panel.title}. {panel.caption} " + " ".join(map(_words, facts))
    return Picture(
        panel.title, panel.caption, panel.bars, tuple(marks), ticks, zero or LEFT, place(panel.reference), panel.reference_text, height, alt
    )


def _words(fact: Fact) -> str:
    text = f"{fact.name}: {fact.text}"
    return text + (f", interval {numbers.interval(fact.interval)}." if fact.interval else ".")


def _domain(panel: Panel, facts: Sequence[Fact]) -> tuple[float, float]:
    """Everything drawn, and zero."""
    values = [0.0, panel.end, panel.reference]
    for fact in facts:
        values += [fact.value, fact.limit, *(fact.interval or ()), *(fact.band or ())]
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low, low + 1.0)


def round_steps(low: float, high: float) -> list[float]:
    """Three to five round numbers from at or under `low` to `high`."""
    raw = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick(value: float) -> str:
    return f"{value:g}"
