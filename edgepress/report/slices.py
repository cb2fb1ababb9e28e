"""The groups of samples of a target: as a sentence for the terminal, and as a picture."""

from __future__ import annotations

from edgepress.report import numbers
from edgepress.report.pictures import Fact, Panel, Picture, draw
from edgepress.report.present import Json, drop_unit

#: Groups in a picture; the others lost less.
_SHOWN = 20


def slice_sentences(report: Json) -> list[str]:
    """For every target whose samples were grouped: its worst judged group beside the average."""
    unit, found = drop_unit(report), []
    for target in report["targets"]:
        judged = [part for part in target.get("slices") or () if part["judged"]]
        if judged:
            worst = max(judged, key=lambda part: part["drop"])
            lost, average = numbers.drop(worst["drop"], unit), numbers.drop(target["metric"]["drop"], unit)
            name, bounds = slice_name(worst), numbers.drop_interval(worst["interval"], unit)
            where = f"{worst['samples']:,} samples"
            found.append(f"{target['name']}: worst of {len(judged)} slices {name} loses {lost} ({bounds}) on {where}; all {average}")
    return found


def slice_picture(target: Json, unit: str) -> Picture | None:
    """The drop of every group with its interval, the worst first; None where there are no groups."""
    slices = sorted(target.get("slices") or (), key=lambda part: -part["drop"])
    if not slices:
        return None
    gate = next((gate for gate in target["gates"] if gate["name"] == "slice_drop"), None)
    limit = numbers.limit(gate["limit"]) if gate else None
    facts = [
        Fact(slice_name(part), part["drop"], part["interval"], numbers.drop(part["drop"], unit), _verdict(part, limit), limit)
        for part in slices
    ]
    more = f" The {len(slices) - _SHOWN} others lost less." if len(slices) > _SHOWN else ""
    caption = f"{unit} against the fp32 original, with its interval. Left is better; grey has too few samples to be judged.{more}"
    return draw(Panel(f"Slices, {target['name']}", caption, False, lambda value: f"{value:g}", 0.0, "no drop"), facts[:_SHOWN])


def slice_name(part: Json) -> str:
    """`class=cat`."""
    return f"{part['by']}={part['group']}"


def _verdict(part: Json, limit: float | None) -> str:
    if limit is None or not part["judged"]:
        return "plain"
    low, high = part["interval"]
    return "pass" if high < limit else "fail" if low > limit else "undecided"
