"""On which line of the recipe something was asked for: what annotations of a verdict point at."""

from __future__ import annotations

from edgepress.config import Config
from edgepress.config_yaml import Place


def target_line(config: Config, target: str) -> int:
    """The line of a target's entry, from 1."""
    return _line(config, _entry(config, target))


def gate_line(config: Config, target: str, gate: str) -> int:
    """The line of a gate: the target's own, else that for all targets; of `gates:` or the target where there is no such gate."""
    family, dot, own = gate.partition(".")
    name: Place = ("against_baseline", own) if dot and family == "baseline" else (gate,)
    entry = _entry(config, target)
    for place in ((*entry, "gates", *name), ("gates", *name), ("gates",), entry):
        if place in config.source.lines:
            return _line(config, place)
    return 1


def _entry(config: Config, target: str) -> Place:
    return next((entry.place for entry in config.targets if entry.name == target), ("targets",))


def _line(config: Config, place: Place) -> int:
    return config.source.lines.get(place, 1)
