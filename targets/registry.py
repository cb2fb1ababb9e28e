"""A table of names to classes: explicit imports for what is built in, one entry-point group for third parties."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from edgepress.targets.errors import ConfigError


class Registry:
    """Looks names up lazily, so that listing them imports no backend.

    Args:
        group: entry-point group of third-party additions, e.g. `edgepress.exporters`.
        builtins: name -> `module:attribute`.

    Raises:
        ConfigError: two owners claim one name (both are named), or a name is unknown (the nearest is named).
    """

    def __init__(self, group: str, builtins: Mapping[str, str]) -> None:
        self.group = group
        self._builtins = dict(builtins)
        self._found: dict[str, str] | None = None

    @property
    def builtins(self) -> Collection[str]:
        """The names that edgepress itself registers."""
        return self._builtins.keys()

    def table(self) -> dict[str, str]:
        """Every known name with the `module:attribute` it stands for."""
        table = dict(self._builtins)
        for point in entry_points(group=self.group):
            if table.get(point.name, point.value) != point.value:
                raise ConfigError(
                    f"the name {point.name!r} in {self.group!r} is claimed twice",
                    f"by {table[point.name]} and by {point.value}",
                    "Uninstall one of the two packages.",
                )
            table[point.name] = point.value
        return table

    def get(self, name: str) -> Any:
        """Import and return what `name` stands for; what is installed is read once."""
        table = self._found = self._found or self.table()
        if name not in table:
            near = get_close_matches(name, table, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown {self.group.split('.')[-1][:-1]} {name!r}", "", f"{hint}Known: {', '.join(sorted(table))}.")
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
