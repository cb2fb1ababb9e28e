"""Dimensions as products of labelled axes, so that reshapes keep what is known about every index.

A dimension of a tensor is a tuple of axes, major to minor: reshaping (B, 12 * 32) to (B, 12, 32) moves factors between dimensions. A
dimension of size 1 has no factors. An axis without labels is pinned as a whole and costs nothing, however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepress.compress.prune.labels import PINNED, Labels

#: Axes that would need more labels than this are pinned instead.
LIMIT = 1 << 18


@dataclass(frozen=True, eq=False)
class Axis:
    """One factor of a dimension: its size, and a label per index (int64 (size,)), or None where all are pinned."""

    size: int
    labels: np.ndarray | None = None


Dim = tuple[Axis, ...]
Dims = tuple[Dim, ...]


class Misfit(Exception):
    """These axes cannot be regrouped as asked; the caller pins them."""


def size_of(dim: Dim) -> int:
    """The number of indices of a dimension."""
    return math.prod(axis.size for axis in dim)


def axes_of(dims: Any) -> Iterator[Axis]:
    """Every axis of the dimensions of one or of several tensors."""
    for item in dims:
        if isinstance(item, Axis):
            yield item
        else:
            yield from axes_of(item)


def opaque(size: int) -> Dim:
    """A dimension whose indices are never removed."""
    return (Axis(size),) if size != 1 else ()


class Space:
    """The axes of one analysis: making, splitting, joining and unifying them."""

    def __init__(self) -> None:
        self.labels = Labels()
        self._splits: dict[tuple[bytes, int], tuple[Axis, Axis]] = {}

    def fresh(self, size: int) -> Dim:
        """A dimension of free indices; one of size 1 is pinned, for nothing would be left of it."""
        return (Axis(size, self.labels.fresh(size)),) if 1 < size <= LIMIT else opaque(size)

    def current(self, axis: Axis) -> np.ndarray | None:
        """The axis's labels under all bindings so far; None where all are pinned."""
        if axis.labels is None:
            return None
        labels = self.labels.resolve(axis.labels)
        return labels if labels.any() else None

    def is_pinned(self, dim: Dim) -> bool:
        """Is no index of the dimension ever removed?"""
        return all(self.current(axis) is None for axis in dim)

    def pin(self, dim: Dim) -> Dim:
        """Pin every index; returns the dimension without labels."""
        for axis in dim:
            for label in set() if axis.labels is None else set(axis.labels.tolist()):
                self.labels.pin(label)
        return opaque(size_of(dim))

    def flat(self, dim: Dim) -> np.ndarray | None:
        """One label per index of the whole dimension, int64 (size,); None where all are pinned. More than `LIMIT` are pinned."""
        known = [self.current(axis) for axis in dim]
        if all(labels is None for labels in known):
            return None
        if size_of(dim) > LIMIT:
            self.pin(dim)
            return None
        result = np.zeros(1, dtype=np.int64)
        for axis, labels in zip(dim, known, strict=True):
            result = self._product(result, np.zeros(axis.size, dtype=np.int64) if labels is None else labels)
        return result

    def _product(self, major: np.ndarray, minor: np.ndarray) -> np.ndarray:
        if not minor.any():
            return np.repeat(major, len(minor))
        if not major.any():
            return np.tile(minor, len(major))
        pairs = {(a, b): self.labels.union((a, b)) for a in set(major.tolist()) for b in set(minor.tolist())}
        return np.array([pairs[a, b] for a in major.tolist() for b in minor.tolist()], dtype=np.int64)

    def split(self, axis: Axis, minor: int) -> tuple[Axis, Axis]:
        """Factor an axis into (size // minor, minor): index k becomes (k // minor, k % minor).

        The factors get variables of their own, and index k of the axis is removed when either of its factors' is.
        """
        major = axis.size // minor
        labels = self.current(axis)
        if labels is None:
            return Axis(major), Axis(minor)
        key = (labels.tobytes(), minor)
        if key not in self._splits:
            first, second = self.labels.fresh(major), self.labels.fresh(minor)
            self.labels.unify(labels, self._product(first, second))
            self._splits[key] = self._splits[self.labels.resolve(labels).tobytes(), minor] = (Axis(major, first), Axis(minor, second))
        return self._splits[key]

    def group(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Cut the factors of a dimension into consecutive dimensions of the given sizes.

        Raises:
            Misfit: the sizes do not multiply to the dimension's.
        """
        if math.prod(sizes) != size_of(dim):
            raise Misfit(f"{size_of(dim)} indices cannot be arranged as {tuple(sizes)}")
        rest = list(reversed(dim))
        groups: list[Dim] = []
        for size in sizes:
            taken: list[Axis] = []
            while size > 1:
                axis = rest.pop()
                if size % axis.size and axis.size % size:  # the cut falls inside two factors: take what is left as one
                    axis, rest = self._block((axis, *reversed(rest))), []
                if axis.size > size:
                    axis, tail = self.split(axis, axis.size // size)
                    rest.append(tail)
                taken.append(axis)
                size //= axis.size
            groups.append(tuple(taken))
        return groups

    def unify(self, first: Dim, second: Dim) -> Dim:
        """State that two dimensions of one size lose the same indices; returns the finer factors of the two.

        Where the factors do not divide one another, the dimensions are compared index by index.

        Raises:
            Misfit: they differ in size (one depends on the batch or a length, and the other does not).
        """
        if size_of(first) != size_of(second):
            raise Misfit(f"{size_of(first)} indices meet {size_of(second)}")
        ours, theirs = list(reversed(first)), list(reversed(second))
        common: list[Axis] = []
        while ours:
            one, other = ours.pop(), theirs.pop()
            if one.size != other.size and (max(one.size, other.size) % min(one.size, other.size)):
                one, other = self._block((one, *reversed(ours))), self._block((other, *reversed(theirs)))
                ours, theirs = [], []
            elif one.size > other.size:
                one, tail = self.split(one, one.size // other.size)
                ours.append(tail)
            elif other.size > one.size:
                other, tail = self.split(other, other.size // one.size)
                theirs.append(tail)
            common.append(self._same(one, other))
        return tuple(common)

    def _block(self, dim: Dim) -> Axis:
        return Axis(size_of(dim), self.flat(dim))

    def _same(self, one: Axis, other: Axis) -> Axis:
        if one is other:
            return one
        first, second = self.current(one), self.current(other)
        if first is None or second is None:
            self.pin((one, other))
            return Axis(one.size)
        if not np.array_equal(first, second):
            self.labels.unify(first, second)
        return one

    def part(self, dim: Dim, indices: np.ndarray) -> Axis:
        """Some of the indices of a dimension, in this order, to count those that are kept. indices: int64 (k,)."""
        labels = self.flat(dim)
        return Axis(len(indices), None if labels is None else labels[indices])

    def take(self, dim: Dim, indices: np.ndarray) -> Dim:
        """The dimension made of some of the indices, in this order; a single one is pinned. indices: int64 (k,)."""
        axis = self.part(dim, indices)
        return (axis,) if axis.size > 1 else self.pin((axis,))

    def concatenate(self, dims: Sequence[Dim]) -> Dim:
        """One dimension after the other."""
        total = sum(size_of(dim) for dim in dims)
        if total > LIMIT:
            for dim in dims:
                self.pin(dim)
        parts = [self.flat(dim) for dim in dims]
        if all(part is None for part in parts):
            return opaque(total)
        filled = [np.full(size_of(dim), PINNED) if part is None else part for dim, part in zip(dims, parts, strict=True)]
        return (Axis(total, np.concatenate(filled).astype(np.int64)),)
