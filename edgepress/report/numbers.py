"""Numbers as people read them: three significant digits, one unit, a plain hyphen for minus."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgepress.quantities import DURATION, SIZE, human

NONE = "-"
_LIMIT = re.compile(r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*([a-zA-Zµ%]*)")


def size(value: float | None) -> str:
    """Bytes: `1.23 MB`."""
    return NONE if value is None else human(value, SIZE)


def milliseconds(value: float | None) -> str:
    """Milliseconds to three significant digits: `0.412 ms`, `12.3 ms`, `1234 ms`."""
    if value is None:
        return NONE
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{places}f} ms"


def seconds(value: float) -> str:
    """How long something took: `0.4 s`, `12 s`, `3 min 5 s`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def drop(value: float | None, unit: str = "pp") -> str:
    """A loss against the original; `+` is worse."""
    if value is None:
        return NONE
    text = f"{value:+.2f}" if unit == "pp" else f"{value:+.3g}"
    return f"{_unsigned_zero(text)} {unit}".strip()


def ratio(value: float | None) -> str:
    """Against the reference: `0.31x`."""
    return NONE if value is None else f"{value:.2f}x" if value >= 0.095 else f"{value:.2g}x"


def percent(value: float | None, places: int = 0) -> str:
    """A share of 0..1."""
    return NONE if value is None else f"{value * 100:.{places}f} %"


def metric(value: float | None, unit: str = "pp") -> str:
    """A metric's value: a percentage where its drops are percentage points."""
    if value is None:
        return NONE
    return percent(value, 2) if unit == "pp" else f"{value:.4g}"


def count(value: float | None) -> str:
    """`1.23 M`, `456 k`, `78`."""
    if value is None:
        return NONE
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if letter == "k" else limit)
            return f"{scaled:.0f} {letter}" if scaled >= 99.5 else f"{scaled:.2f} {letter}"
    return f"{value:g}"


def rate(macs_per_s: float) -> str:
    """Multiply-accumulates per second as GMAC/s, the unit left out: `80`, `4.3`."""
    value = macs_per_s / 1e9
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def interval(bounds: Sequence[float] | None, places: int = 2) -> str:
    """`-0.05 to 0.30`."""
    if bounds is None:
        return ""
    low, high = (_unsigned_zero(f"{bound:.{places}f}") for bound in bounds)
    return f"{low} to {high}"


def drop_interval(bounds: Sequence[float] | None, unit: str = "pp") -> str:
    """An interval of drops with the digits that `drop` has: `-0.05 to 0.30` of points, `-1.2e-05 to 0.00044` of another unit."""
    if bounds is None or unit == "pp":
        return interval(bounds)
    return " to ".join(f"{bound:.3g}" for bound in bounds)


def conditions(found: Mapping[str, Any]) -> str:
    """What a machine did while it measured: `on cores 0, 1 at 2445 MHz, other work took 12 % of the machine`."""
    cores, words = found["cores"], []
    if cores:
        words.append(
            f"on core{'s' if len(cores) > 1 else ''} {', '.join(map(str, cores))}" if len(cores) <= 4 else f"on {len(cores)} cores"
        )
    if found["mhz"]:
        low, high = found["mhz"]
        words.append(f"at {low:.0f} MHz" if low == high else f"at {low:.0f} to {high:.0f} MHz")
    if found["governor"]:
        words.append(f"governor {found['governor']}")
    return ", ".join([*words, f"other work took {percent(found['others'])} of the machine"])


def limit(text: str) -> float | None:
    """The number in a gate's limit, in pp, plain ratio, bytes or seconds; None where there is none."""
    match = _LIMIT.search(text)
    if match is None:
        return None
    value, unit = float(match[1]), match[2]
    for dimension in (SIZE, DURATION):
        if unit in dimension.units:
            return value * dimension.units[unit]
    return value * 0.01 if unit == "%" else value


def _unsigned_zero(text: str) -> str:
    return re.sub(r"^[-+](0(?:\.0*)?)$", r"\1", text)
