"""The entries of `targets:` and `compress:`: words, or mappings with one key."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from edgepress.config_check import build
from edgepress.config_models import GatesConfig, TargetOverrides, keys_of
from edgepress.config_steps import STEPS, QuantizeConfig, Step
from edgepress.config_yaml import Place, Source, nearest
from edgepress.targets.catalog import CATALOG, CatalogEntry

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TargetEntry:
    """One entry of `targets:`, checked against the catalog.

    Attributes:
        name: the catalog name, or `catalog:label` where a runtime appears more than once.
        entry: the catalog's line.
        overrides: what the recipe says besides the options.
        options: settings of the runtime's exporter.
        gates_off: gates that `gates: {x: off}` takes away for this target.
        place: where it stands in the file.
    """

    name: str
    entry: CatalogEntry
    overrides: TargetOverrides
    options: dict[str, Any]
    gates_off: tuple[str, ...]
    place: Place


def read_steps(entries: list[Any], source: Source) -> tuple[Step, ...]:
    """The steps of `compress:` in their order; `quantize` comes last and once.

    Raises:
        ConfigError: an unknown step or key, or a step after quantize.
    """
    found: list[Step] = []
    for i, raw in enumerate(entries):
        name, settings, place = _word_or_mapping(raw, source, ("compress", i), "step", sorted(STEPS))
        if name not in STEPS:
            raise source.error(place, f"unknown step {name!r}", nearest(name, sorted(STEPS)))
        step: Any = build(STEPS[name], settings, source, place)
        if any(isinstance(earlier, QuantizeConfig) for earlier in found):
            what = "a second quantize step has nothing left to quantize" if name == "quantize" else f"`{name}` stands after quantize"
            raise source.error(place, what, "Keep one." if name == "quantize" else "Put quantize last: it turns weights into integers.")
        found.append(step)
    return tuple(found)


def read_targets(entries: list[Any], source: Source) -> tuple[TargetEntry, ...]:
    """Every entry of `targets:`.

    Raises:
        ConfigError: no target, an unknown one (the nearest is named), one name twice, an unknown or malformed option.
    """
    known = list(CATALOG.table())
    if not entries:
        raise source.error(("targets",), "no target", f"Known: {', '.join(known)}.")
    found: dict[str, TargetEntry] = {}
    for i, raw in enumerate(entries):
        name, settings, place = _word_or_mapping(raw, source, ("targets", i), "target", known)
        target = _target(name, settings, source, place, known)
        if name in found:
            label = f"{name}-2" if ":" in name else f"{name}:second"
            raise source.error(place, f"the target {name!r} stands twice", f"Give one a label of its own, e.g. `{label}`.")
        found[name] = target
    return tuple(found.values())


def _target(name: str, settings: Any, source: Source, place: Place, known: list[str]) -> TargetEntry:
    base, colon, label = name.partition(":")
    if base not in known:
        raise source.error(place, f"unknown target {base!r}", nearest(base, known))
    if colon and not _LABEL.fullmatch(label):
        raise source.error(place, f"{label!r} is not a label", "Use letters, digits, dots, dashes and underscores after the colon.")
    entry: CatalogEntry = CATALOG.get(base)
    meanings = dict(entry.options)
    settings = {} if settings is None else settings
    gates, off = _without_off(settings, source, place)
    if gates is not None:
        settings = {**settings, "gates": gates}
    overrides = build(TargetOverrides, settings, source, place, meanings)
    options = {key: _option(entry, key, value, source, (*place, key)) for key, value in settings.items() if key in meanings}
    return TargetEntry(name, entry, overrides, options, off, place)


def _without_off(settings: Any, source: Source, place: Place) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    gates = settings.get("gates") if isinstance(settings, dict) else None
    if not isinstance(gates, dict):
        return None, ()
    off = tuple(name for name, value in gates.items() if value is False)
    known = keys_of(GatesConfig)
    for name in off:
        if name not in known:
            raise source.unknown((*place, "gates", name), known)
    return {name: value for name, value in gates.items() if name not in off}, off


def _option(entry: CatalogEntry, name: str, value: Any, source: Source, place: Place) -> Any:
    items = value if isinstance(value, list) else [value]
    meaning = dict(entry.options)[name]
    for item in items:
        if isinstance(item, float):
            shown = item if math.isfinite(item) else "8.6"
            raise source.error(place, f"'{item}' is read as a number", f'Write it in quotes: "{shown}". {name}: {meaning}.')
        if not isinstance(item, str | int):
            raise source.error(place, f"'{item}' is neither text nor a whole number", f"{name}: {meaning}.")
        pattern = dict(entry.patterns).get(name)
        if pattern is not None and not re.fullmatch(pattern, str(item)):
            raise source.error(place, f"'{item}' is not a value of {name}", f"{name}: {meaning}.")
    if not items:
        raise source.error(place, f"{name} is an empty list", f"{name}: {meaning}.")
    return tuple(items) if isinstance(value, list) else value


def _word_or_mapping(raw: Any, source: Source, place: Place, kind: str, known: list[str]) -> tuple[str, Any, Place]:
    if isinstance(raw, str):
        return raw, None, place
    if isinstance(raw, dict) and len(raw) == 1:
        name, settings = next(iter(raw.items()))
        return name, settings, (*place, name)
    if isinstance(raw, dict) and len(raw) > 1:
        first, second = list(raw)[:2]
        raise source.error(
            (*place, second),
            f"{second!r} stands beside {first!r} instead of below it",
            f"Indent it further, or write `- {first}: {{{second}: …}}`.",
        )
    raise source.error(place, f"'{raw}' is not a {kind}", f"Write one of: {', '.join(known)}.")
