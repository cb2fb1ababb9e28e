"""Waivers: a gate that did not pass may be let through by someone, for a reason, until a day. Shown as `waived`, never as a pass.

In report.json its verdict is `accepted`, as that of a measurement the recipe does without: both are no pass, and no obstacle to one. The
`waiver` beside it tells them apart, and holds what the gate amounts to without it.

| gate | valid waiver | expired waiver |
|---|---|---|
| fail, undecided | accepted, with the waiver: counts as pass in the exit code | stays as it is |
| pass, accepted | stays as it is | stays as it is |
| error | stays an error: there is nothing to let through | stays an error |

An expired waiver adds a row `waiver.<gate>` that fails, also where the gate passes by now: who no longer needs a waiver removes it.
A waiver holds through its last day, in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from edgepress.config_waivers import Waiver
from edgepress.targets.errors import EdgepressError
from edgepress.validators.gates import ACCEPTED, FAIL, UNDECIDED

Json = dict[str, Any]

_EXPIRY = "waiver."


def recorded_waivers(report: Mapping[str, Any]) -> tuple[Waiver, ...]:
    """The waivers a report was judged with.

    Raises:
        EdgepressError: they cannot be read.
    """
    try:
        return tuple(Waiver(**{**entry, "expires": date.fromisoformat(entry["expires"])}) for entry in report.get("waivers", ()))
    except (TypeError, ValueError, KeyError) as error:
        raise EdgepressError("the waivers in report.json cannot be read", str(error), "It was edited: run again.") from error


def apply_waivers(target: Json, waivers: Iterable[Waiver], today: date) -> Json:
    """A target with its gates waived, whatever was waived in it before."""
    gates = [_without_waiver(gate) for gate in target["gates"] if not gate["name"].startswith(_EXPIRY)]
    for waiver in waivers:
        if waiver.target != target["name"]:
            continue
        place = next((i for i, gate in enumerate(gates) if gate["name"] == waiver.gate), None)
        if place is None:
            continue
        if waiver.days_over(today) > 0:
            gates.append(_expired(waiver, gates[place]["verdict"], today))
        elif gates[place]["verdict"] in (FAIL, UNDECIDED):
            waived = {key: value for key, value in waiver.to_json().items() if key not in ("target", "gate")}
            gates[place] = {**gates[place], "verdict": ACCEPTED, "waiver": {**waived, "verdict": gates[place]["verdict"]}}
    return {**target, "gates": gates}


def _without_waiver(gate: Json) -> Json:
    if "waiver" not in gate:
        return gate
    return {**{key: value for key, value in gate.items() if key != "waiver"}, "verdict": gate["waiver"]["verdict"]}


def _expired(waiver: Waiver, verdict: str, today: date) -> Json:
    days = waiver.days_over(today)
    step = f"Fix {waiver.gate}, or let {waiver.owner} renew the waiver." if verdict in (FAIL, UNDECIDED) else "Remove the waiver."
    return {
        "name": f"{_EXPIRY}{waiver.gate}",
        "limit": f"not after {waiver.expires.isoformat()}",
        "observed": f"expired {days} day{'' if days == 1 else 's'} ago (owner {waiver.owner}: {waiver.reason})",
        "interval": None,
        "verdict": FAIL,
        "next_step": step,
    }
