"""Labels: the conditions under which one index of one tensor dimension is removed.

A label is a set of variables and means "removed if any of them is". The empty label, `PINNED`, is never removed. A variable starts free;
stating that two labels are the same condition (`unify`) binds variables to one another, to sets of others, or to `PINNED`. Every step keeps
the statement true and may only lose freedom, so a solution never removes one of two indices that must go together. Union-find with path
compression (Tarjan 1975), extended by sets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

PINNED = 0


class Labels:
    """All labels of one analysis, numbered; a number stands for a variable or for an interned set of variables.

    Numbers stay valid while variables are bound: `find` gives the number that stands for the same condition now.
    """

    def __init__(self) -> None:
        self._next = [PINNED]
        self._members: list[frozenset[int]] = [frozenset()]
        self._sets: dict[frozenset[int], int] = {frozenset(): PINNED}
        self._starts: list[int] = []
        self.pins = 0

    def fresh(self, count: int) -> np.ndarray:
        """`count` new variables; they share one origin (see `origin`). int64 (count,)."""
        start = len(self._next)
        self._starts.append(start)
        self._next.extend(range(start, start + count))
        self._members.extend(frozenset((i,)) for i in range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def origin(self, variable: int) -> int:
        """The number of the `fresh` call that made the variable."""
        return bisect_right(self._starts, variable) - 1

    def find(self, label: int) -> int:
        """The number that stands for this label under all bindings so far."""
        root = label
        while self._next[root] != root:
            root = self._next[root]
        members = self._members[root]
        if len(members) > 1 and any(self._next[m] != m for m in members):
            new = self.union(members)
            self._next[root] = new
            root = new
        while self._next[label] != root and label != root:
            self._next[label], label = root, self._next[label]
        return root

    def union(self, labels: Iterable[int]) -> int:
        """The label that is removed when any of these is."""
        members = frozenset[int]().union(*(self._members[self.find(label)] for label in labels))
        if len(members) == 1:
            return next(iter(members))
        number = self._sets.get(members)
        if number is None:
            number = self._sets[members] = len(self._next)
            self._next.append(number)
            self._members.append(members)
        return number

    def members(self, label: int) -> frozenset[int]:
        """The unbound variables of a label."""
        return self._members[self.find(label)]

    def resolve(self, labels: np.ndarray) -> np.ndarray:
        """`find` of every element."""
        following, members = self._next, self._members
        rough = [following[i] for i in labels.tolist()]
        settled = all(following[i] == i and len(members[i]) < 2 for i in rough)
        return np.array(rough if settled else [self.find(i) for i in rough], dtype=np.int64)

    def pin(self, label: int) -> None:
        """Never remove what carries this label."""
        for variable in self.members(label):
            self._next[variable] = PINNED
            self.pins += 1

    def unify(self, first: np.ndarray, second: np.ndarray) -> None:
        """State that `first[k]` and `second[k]` are the same condition, for every k.

        Labels of several variables on both sides are matched over the whole array: variables that stand at the same positions become one.
        What has no partner is pinned, the variables at the fewest positions (the finest structure) first.

        Args:
            first: int64 (n,), labels.
            second: int64 (n,), labels.
        """
        while True:
            first, second = self.resolve(first), self.resolve(second)
            open_ = [k for k in np.flatnonzero(first != second).tolist() if not self._bind(int(first[k]), int(second[k]))]
            if not open_:
                return
            if not self._match(first, second):
                self._pin_finest(first[open_], second[open_], (first, second))

    def _bind(self, first: int, second: int) -> bool:
        """Make two labels equal where one binding suffices; False leaves them to `_match`."""
        ours, theirs = self.members(first), self.members(second)
        ours, theirs = ours - theirs, theirs - ours
        if len(ours) > 1 and len(theirs) > 1:
            return False
        if len(ours) == 1 and len(theirs) == 1:
            (one,), (other,) = ours, theirs
            self._next[max(one, other)] = min(one, other)
        elif not ours or not theirs:
            for variable in ours | theirs:
                self.pin(variable)
        else:
            (one,), rest = (ours, theirs) if len(ours) == 1 else (theirs, ours)
            self._next[one] = self.union(rest)
        return True

    def _positions(self, labels: np.ndarray) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for k, label in enumerate(labels.tolist()):
            for variable in self.members(label):
                found[variable].append(k)
        return found

    def _match(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Merge the variables of either side that stand at the same positions; did any?"""
        ours, theirs = self._positions(first), self._positions(second)
        partner = {tuple(where): variable for variable, where in theirs.items() if variable not in ours}
        pairs = [
            (variable, partner[tuple(where)]) for variable, where in ours.items() if variable not in theirs and tuple(where) in partner
        ]
        for one, other in pairs:
            if self.find(one) != self.find(other):
                self._bind(one, other)
        return bool(pairs)

    def _pin_finest(self, first: np.ndarray, second: np.ndarray, whole: tuple[np.ndarray, np.ndarray]) -> None:
        rests = set[int]()
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            rests |= self.members(one) ^ self.members(other)
        counts: dict[int, int] = defaultdict(int)
        for side in whole:
            for variable, where in self._positions(side).items():
                counts[variable] += len(where)
        fewest = min((counts[variable] for variable in rests), default=0)
        for variable in rests:
            if counts[variable] == fewest:
                self.pin(variable)
