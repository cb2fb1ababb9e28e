"""The distance to this machine's peak in words."""

from __future__ import annotations

from edgepress.report import numbers
from edgepress.report.present import Json

#: A share that is printed as 0 % or 100 % is called one arithmetic.
_ALL = 0.995


def distance_text(distance: Json) -> str:
    """`1.6x off this machine's int8 peak of 80 GMAC/s`, or why it was not measured."""
    if distance["value"] is None:
        return f"not measured: {distance['why']}"
    share = distance["integer_share"]
    int8, fp32 = (f"{numbers.rate(distance[key])} GMAC/s" for key in ("int8_macs_per_s", "fp32_macs_per_s"))
    off = f"{distance['value']:.1f}x off this machine's"
    if share >= _ALL:
        return f"{off} int8 peak of {int8}"
    if share <= 1 - _ALL:
        return f"{off} fp32 peak of {fp32}"
    return f"{off} peaks of {int8} in int8 ({numbers.percent(share)} of the multiply-accumulates) and {fp32} in fp32"


def peak_sentence(report: Json) -> str | None:
    """All targets that were timed in one line; None where none was."""
    found = [(target["name"], target["peak_distance"]) for target in report["targets"] if target.get("peak_distance")]
    parts = [f"{name} {distance_text(distance)}" for name, distance in found]
    return f"Latency and the multiply-accumulates alone: {'; '.join(parts)}" if parts else None
