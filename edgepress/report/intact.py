"""Is a report what a run wrote? A verdict is only as good as the file it is read from: one that was edited, cut or does not hold
together is refused, and never a pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgepress.quantities import SIZE
from edgepress.report.present import RANK, shown_verdict, target_verdict
from edgepress.report.schema import load_schema
from edgepress.report.schema.follow import violations
from edgepress.validators.gates import accepts, overall

Json = Mapping[str, Any]

#: What a gate that passed was measured as, by its name or the first word of it.
_MEASURED = {
    "accuracy_drop": "metric",
    "slice_drop": "slices",
    "latency_ratio": "latency_ratio",
    "latency": "latency_ms",
    "size": "artifact",
    "peak_memory": "peak_memory_bytes",
    "max_abs_error": "parity",
    "sqnr": "parity",
    "argmax_agreement": "parity",
}
_QUANTITY = re.compile(r"([-+]?\d+(?:\.(\d+))?(?:e([-+]?\d+))?)\s*([a-zA-Z]*)")


def faults(report: Any) -> Iterator[str]:
    """Why a report cannot be judged; none where it can.

    Args:
        report: what was read from report.json, of the schema `edgepress/report/v1`.
    """
    broken = False
    for found in violations(load_schema("report.v1"), report):
        broken = True
        yield found
    if broken:
        return
    names = [target["name"] for target in report["targets"]]
    yield from (f"two targets are called {name!r}" for name in sorted({name for name in names if names.count(name) > 1}))
    for target in report["targets"]:
        for gate in target["gates"]:
            yield from _contradictions(target, gate)
    judged = overall([target_verdict(target) for target in report["targets"]])
    if RANK.index(report["verdict"]) < RANK.index(judged):
        yield f"the verdict is {report['verdict']}, but its gates amount to {judged}"


def _contradictions(target: Json, gate: Json) -> Iterator[str]:
    """What a gate says against the measurements beside it."""
    what = f"{gate['name']} of {target['name']!r}"
    if shown_verdict(gate) == "accepted" and not accepts(tuple(target.get("unmeasured") or ()), gate["name"]):
        yield f"{what} is accepted, but the recipe accepts nothing of it"
    if gate["verdict"] != "pass":
        return
    own = gate["name"].removeprefix("baseline.")
    field = _MEASURED.get(own) or _MEASURED.get(own.split("_")[0])
    if field is not None and target.get(field) is None:
        yield f"{what} passed, but {field} was not measured"
    limit, seen = _quantity(gate["limit"]), _seen(gate)
    if limit is None:
        return
    if not seen or seen[0][2] != limit[2]:
        yield f"{what} passed, but {gate['observed']!r} cannot be compared with {gate['limit']!r}"
        return
    sign = -1 if gate["limit"].startswith("at least") else 1
    for value, rounding, _ in seen:
        if sign * (value - limit[0]) > rounding + limit[1]:
            yield f"{what} passed, but {gate['observed']} is not {gate['limit']}"
            return


def _seen(gate: Json) -> list[tuple[float, float, str]]:
    """The value that was judged and, where the gate has an interval, its ends; in the unit of the observation."""
    observed = _quantity(gate["observed"])
    if observed is None:
        return []
    return [observed, *((float(end), 0.0, observed[2]) for end in gate["interval"] or ())]


def _quantity(text: str) -> tuple[float, float, str] | None:
    """The first number of a text: value, half of its last digit, and unit; bytes for every unit of size."""
    match = _QUANTITY.search(text)
    if match is None:
        return None
    value, unit = float(match[1]), match[4]
    rounding = 0.5 * 10.0 ** (int(match[3] or 0) - len(match[2] or ""))
    unit = "B" if unit == "bytes" else unit
    if unit in SIZE.units:
        return value * SIZE.units[unit], rounding * SIZE.units[unit], "bytes"
    return value, rounding, unit if unit in ("pp", "ms", "dB") else ""
