"""What is left of every axis when some units are removed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgepress.compress.prune.axes import Axis, Dim, Space


class Scaled(NamedTuple):
    """A size that depends on the batch, times `after / before`; `size` is the node that computes it."""

    size: object
    before: int
    after: int


class Solution:
    """The labels of a finished analysis, in units.

    Args:
        space: the analysis; nothing is unified or pinned any more.
        units: variable -> unit number; every other variable is pinned.
    """

    def __init__(self, space: Space, units: Mapping[int, int]) -> None:
        self._space, self._units = space, units
        self._codes: dict[Axis, np.ndarray | None] = {}
        self._numbers: dict[int, int] = {0: 0}
        self._table: list[list[int]] = [[len(units)]]
        self._flat = self._starts = np.zeros(0, dtype=np.int64)
        self.unit_count = len(units)

    def codes(self, axis: Axis) -> np.ndarray | None:
        """A condition number per index, int64 (size,); None where all are pinned."""
        if axis not in self._codes:
            labels = self._space.current(axis)
            codes = None if labels is None else np.array([self._number(label) for label in labels.tolist()], dtype=np.int64)
            self._codes[axis] = codes if codes is not None and codes.any() else None
        return self._codes[axis]

    def _number(self, label: int) -> int:
        if label not in self._numbers:
            units = sorted(self._units[v] for v in self._space.labels.members(label) if v in self._units)
            self._numbers[label] = len(self._table) if units else 0
            if units:
                self._table.append(units)
        return self._numbers[label]

    def units_of(self, code: int) -> list[int]:
        """The units that remove what carries this condition number."""
        return self._table[code] if code else []

    def pairs(self, dim: Dim) -> tuple[np.ndarray, np.ndarray]:
        """(index, unit), both int64 (k,): which unit removes which index; an index may stand with several units."""
        places = np.arange(math.prod(axis.size for axis in dim)).reshape([axis.size for axis in dim])
        found: list[tuple[int, int]] = []
        for position, axis in enumerate(dim):
            codes = self.codes(axis)
            for k, code in enumerate(() if codes is None else codes.tolist()):
                where = places.take(k, position).reshape(-1).tolist()
                found += [(index, unit) for unit in self.units_of(code) for index in where]
        both = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def gone(self, removed: np.ndarray) -> np.ndarray:
        """Per condition number: does it hold? removed: bool (unit_count,)."""
        if len(self._starts) != len(self._table):
            self._flat = np.fromiter((u for units in self._table for u in units), dtype=np.int64)
            self._starts = np.cumsum([0, *(len(units) for units in self._table[:-1])])
        return np.logical_or.reduceat(np.append(removed, False)[self._flat], self._starts)


class Kept:
    """The indices that are left when units are removed.

    Args:
        solution: the labels in units.
        removed: bool (unit_count,).
    """

    def __init__(self, solution: Solution, removed: np.ndarray) -> None:
        self._solution, self._removed = solution, removed
        self._gone = solution.gone(removed)

    def axis(self, axis: Axis) -> np.ndarray | None:
        """Which indices are kept, bool (size,); None where all are."""
        codes = self._solution.codes(axis)
        if codes is None:
            return None
        if codes.max() >= len(self._gone):
            self._gone = self._solution.gone(self._removed)
        gone = self._gone[codes]
        return ~gone if gone.any() else None

    def count(self, axis: Axis) -> int:
        """How many indices of an axis are kept."""
        mask = self.axis(axis)
        return axis.size if mask is None else int(mask.sum())

    def size(self, dim: Dim) -> int:
        """How many indices of a dimension are kept."""
        return math.prod(self.count(axis) for axis in dim)

    def mask(self, dim: Dim) -> np.ndarray | None:
        """Which indices of a dimension are kept, bool (size,); None where all are."""
        masks = [self.axis(axis) for axis in dim]
        if all(mask is None for mask in masks):
            return None
        result = np.ones(1, dtype=bool)
        for axis, mask in zip(dim, masks, strict=True):
            result = np.logical_and.outer(result, np.ones(axis.size, dtype=bool) if mask is None else mask).reshape(-1)
        return result

    def resized(self, old: object, dim: Dim) -> object:
        """A size argument after the removal: -1 stays, a number becomes the kept size, a node is scaled."""
        if isinstance(old, int):
            return old if old == -1 else self.size(dim)
        changed = [axis for axis in dim if self.axis(axis) is not None]
        before, after = math.prod(axis.size for axis in changed), math.prod(self.count(axis) for axis in changed)
        return old if before == after else Scaled(old, before, after)
