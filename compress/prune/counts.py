"""Sizes and products of sizes as fast functions of a removal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepress.compress.prune.axes import Axis, Dim, axes_of
from edgepress.compress.prune.flow import Flow
from edgepress.compress.prune.kept import Solution


class Counter:
    """Counts the kept indices of every free axis at once; equal axes are counted once."""

    def __init__(self, solution: Solution) -> None:
        self._solution = solution
        self._known: dict[bytes, int] = {}
        self._codes: list[np.ndarray] = []
        self._flat = self._starts = np.zeros(0, dtype=np.int64)

    def add(self, axis: Axis) -> int | None:
        """The number of the axis, None for one that loses nothing."""
        codes = self._solution.codes(axis)
        if codes is None:
            return None
        key = codes.tobytes()
        if key not in self._known:
            self._known[key] = len(self._codes)
            self._codes.append(codes)
        return self._known[key]

    def counts(self, removed: np.ndarray) -> np.ndarray:
        """Kept indices per axis number, int64."""
        if not self._codes:
            return np.zeros(0, dtype=np.int64)
        if len(self._starts) != len(self._codes):
            self._flat = np.concatenate(self._codes)
            self._starts = np.cumsum([0, *(len(codes) for codes in self._codes[:-1])])
        kept = ~self._solution.gone(removed)
        return np.add.reduceat(kept[self._flat].astype(np.int64), self._starts)


class Products:
    """Products of sizes, as functions of the removal."""

    def __init__(self, counter: Counter, flow: Flow, terms: Sequence[tuple[str, Sequence[Dim]]]) -> None:
        self._counter = counter
        self._factors = np.ones(len(terms), dtype=np.int64)
        rows: list[list[int]] = []
        for row, (_, dims) in enumerate(terms):
            rows.append([])
            for axis in axes_of(dims):
                number = counter.add(axis)
                if number is None:
                    self._factors[row] *= flow.sizes.static(axis.size)
                else:
                    rows[row].append(number)
        width = max((len(row) for row in rows), default=0)
        self._rows = np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), width)

    def values(self, removed: np.ndarray) -> np.ndarray:
        """One product per term, int64."""
        counts = np.append(self._counter.counts(removed), 1)
        products: np.ndarray = self._factors * counts[self._rows].prod(axis=1)
        return products
