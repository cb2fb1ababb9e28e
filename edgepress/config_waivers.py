"""The entries of `waivers:`, in the recipe or in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgepress.config_check import build
from edgepress.config_models import Strict
from edgepress.config_yaml import Place, Source, nearest, read
from edgepress.targets.errors import ConfigError

_LISTED = "Write `waivers:` and below it a list of {target, gate, owner, reason, expires}."


class _Keys(Strict):
    """One entry of `waivers:`."""

    target: str
    gate: str
    owner: Annotated[str, Field(min_length=1)]
    reason: Annotated[str, Field(min_length=1)]
    expires: str


@dataclass(frozen=True)
class Waiver:
    """Lets one gate of one target through.

    Attributes:
        target, gate: names as in the report, e.g. `tflite` and `baseline.latency_ratio`.
        owner: who answers for it.
        expires: its last day, in UTC.
    """

    target: str
    gate: str
    owner: str
    reason: str
    expires: date

    def to_json(self) -> dict[str, Any]:
        """An entry of `waivers` in report.json."""
        return {**vars(self), "expires": self.expires.isoformat()}

    def days_over(self, today: date) -> int:
        """How many days ago it expired; 0 or less while it holds."""
        return (today - self.expires).days


def read_waivers(entries: Any, source: Source, root: Path, gates: Mapping[str, Sequence[str]]) -> tuple[Waiver, ...]:
    """The waivers of a recipe.

    Args:
        entries: the value of `waivers:`: a list, or the path of a file that has one.
        source: the recipe.
        root: what that path is relative to.
        gates: target -> names of its gates.

    Raises:
        ConfigError: a wrong key or date, two waivers of one gate, or one that no gate of no target matches.
    """
    if isinstance(entries, str):
        return read_waiver_file(root / entries, gates)
    found: dict[tuple[str, str], Waiver] = {}
    for i, entry in enumerate(entries):
        place: Place = ("waivers", i)
        waiver = _waiver(build(_Keys, entry, source, place), source, place)
        _check_matches(waiver, gates, source, place)
        if (waiver.target, waiver.gate) in found:
            raise source.error(place, f"{waiver.gate!r} of {waiver.target!r} is waived twice", "Keep one.")
        found[waiver.target, waiver.gate] = waiver
    return tuple(found.values())


def read_waiver_file(path: Path, gates: Mapping[str, Sequence[str]]) -> tuple[Waiver, ...]:
    """The waivers of a file with `waivers:` at its top.

    Raises:
        ConfigError: as `read_waivers`; the file cannot be read, or has another key.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file of waivers {str(path)!r}", "", _LISTED)
    source = read(path)
    if not isinstance(source.data, dict) or list(source.data) != ["waivers"] or not isinstance(source.data["waivers"], list):
        raise source.error((), "this is no list of waivers", _LISTED)
    return read_waivers(source.data["waivers"], source, path.parent, gates)


def _waiver(keys: _Keys, source: Source, place: Place) -> Waiver:
    try:
        expires = date.fromisoformat(keys.expires)
    except ValueError:
        raise source.error((*place, "expires"), f"{keys.expires!r} is not a day", "Write e.g. 2026-12-31.") from None
    return Waiver(keys.target, keys.gate, keys.owner, keys.reason, expires)


def _check_matches(waiver: Waiver, gates: Mapping[str, Sequence[str]], source: Source, place: Place) -> None:
    if waiver.target not in gates:
        raise source.error(
            (*place, "target"), f"the waiver is for {waiver.target!r}, which is no target", nearest(waiver.target, list(gates))
        )
    known = list(gates[waiver.target])
    if waiver.gate not in known:
        what = f"the waiver is for {waiver.gate!r}, which is no gate of {waiver.target!r}"
        raise source.error((*place, "gate"), what, nearest(waiver.gate, known) if known else "It has none.")
