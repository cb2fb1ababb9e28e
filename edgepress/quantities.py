"""Quantities with units, as people write them in edgepress.yaml: `1.0pp`, `5ms`, `2MB`, `512 kB`, `30m`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Dimension:
    """A kind of quantity.

    Attributes:
        name: for messages, e.g. `size`.
        base: the unit `Quantity.base` is in.
        units: unit -> how many base units it is.
        examples: two ways of writing one, for messages; the number is put in front.
        bare: whether a number without a unit is one (ratios).
        ladder: units used for people, from small to large.
    """

    name: str
    base: str
    units: Mapping[str, float]
    examples: tuple[str, ...]
    ladder: tuple[str, ...]
    bare: bool = False


POINTS = Dimension("percentage points", "pp", {"pp": 1.0}, ("pp",), ("pp",))
DROP = Dimension("drop", "", {"pp": 1.0, "": 1.0}, ("pp",), ("",), bare=True)  # without a unit: in the metric's own
DECIBEL = Dimension("signal-to-noise ratio", "dB", {"dB": 1.0}, ("dB",), ("dB",))
RATIO = Dimension("ratio", "", {"": 1.0, "%": 0.01, "x": 1.0}, ("", "%"), ("",), bare=True)
DURATION = Dimension(
    "duration",
    "s",
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
    ("ms", "s"),
    ("ns", "us", "ms", "s"),
)
SIZE = Dimension(
    "size",
    "B",
    {"B": 1.0, **{f"{p}B": 1000.0 ** (i + 1) for i, p in enumerate("kMGT")}, **{f"{p}iB": 1024.0 ** (i + 1) for i, p in enumerate("KMGT")}},
    ("MB", "MiB"),
    ("B", "kB", "MB", "GB", "TB"),
)
DIMENSIONS = (POINTS, DROP, DECIBEL, RATIO, DURATION, SIZE)

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.DOTALL)


class QuantityError(ValueError):
    """Text that is not a quantity of the dimension asked for: `what` is the fact, `remedy` what to write."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what, self.remedy = what, remedy


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, as it was written.

    Attributes:
        value: in `unit`; finite and not negative.
        unit: a unit of `dimension`.
        dimension: what it measures.
    """

    value: float
    unit: str
    dimension: Dimension

    @property
    def base(self) -> float:
        """The value in the dimension's base unit: pp, a plain ratio, seconds or bytes."""
        return self.value * self.dimension.units[self.unit]

    def __str__(self) -> str:
        return f"{_digits(self.value)}{self.unit}"


def parse(value: object, dimension: Dimension) -> Quantity:
    """Read `2MB`, `0.5 pp`, `30m`; a ratio may also be a bare number.

    Raises:
        QuantityError: no number, no unit, an unknown unit, a unit of another dimension, negative or not finite.
    """
    shown = repr(value) if isinstance(value, str) else f"'{value}'"
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value))
    if not isinstance(value, str | int | float) or match is None:
        raise QuantityError(f"{shown} is not a {dimension.name}", _examples(dimension, "1"))
    digits, unit = match.groups()
    number = float(digits)
    if not math.isfinite(number) or math.copysign(1.0, number) < 0:
        raise QuantityError(f"{shown} is {'negative' if number < 0 else 'not a usable number'}", _examples(dimension, "1"))
    if unit not in dimension.units:
        raise _wrong_unit(shown, digits, unit, dimension)
    quantity = Quantity(number, unit, dimension)
    if not math.isfinite(quantity.base):
        raise QuantityError(f"{shown} is not a usable number", _examples(dimension, "1"))
    return quantity


def human(value: float, dimension: Dimension) -> str:
    """A value in base units for people, to three significant digits: `1.23 MB`, `45.6 ms`, `0.12 pp`."""
    if dimension in (POINTS, RATIO, DROP, DECIBEL):
        return f"{value:.2f} {dimension.base}" if dimension.base else f"{value:.3f}"
    unit = dimension.ladder[0]
    for candidate in dimension.ladder:
        if abs(value) >= dimension.units[candidate] * 0.9995:
            unit = candidate
    scaled = value / dimension.units[unit]
    if unit == "B" and float(scaled).is_integer():
        return f"{int(scaled)} B"
    places = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{places}f} {unit}"


def _wrong_unit(shown: str, digits: str, unit: str, dimension: Dimension) -> QuantityError:
    if not unit:
        return QuantityError(f"{shown} has no unit", _examples(dimension, digits))
    for other in DIMENSIONS:
        if other is not dimension and unit in other.units:
            what = f"{shown} is a {other.name}, a {dimension.name} is needed"
            if unit == "%" and dimension in (POINTS, DROP):
                what = f"{shown} could mean a relative or an absolute change"
            return QuantityError(what, _examples(dimension, digits))
    folded = {known.lower(): known for known in dimension.units if known}
    near = get_close_matches(unit.lower(), folded, 1, 0.5)
    guess = f"Did you mean {digits}{folded[near[0]]}? " if near else ""
    return QuantityError(f"{shown} has the unknown unit {unit!r}", f"{guess}Units: {', '.join(u for u in dimension.units if u)}.")


def _examples(dimension: Dimension, digits: str) -> str:
    digits = digits.lstrip("+-") or "1"
    return f"Write e.g. {' or '.join(f'{digits}{unit}' for unit in dimension.examples)}."


def _digits(value: float) -> str:
    return str(int(value)) if value.is_integer() and value < 1e15 else repr(value)
