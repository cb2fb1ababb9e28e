"""Which units to remove: the least important ones that bring the model just inside a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgepress.compress.prune.budget import Budget, Cost, check_known, cost_of
from edgepress.compress.prune.masks import matching_layers
from edgepress.compress.prune.structure import Family, Structure
from edgepress.targets.errors import PruneError

RANKINGS = ("global", "local", "cost")
KINDS = ("channels", "heads", "head_dims", "neurons", "groups", "group_channels")
#: Kinds whose count is the width of a matrix, so that multiples of a kernel's tile pay.
_TILED = frozenset({"channels", "neurons", "head_dims"})


@dataclass(frozen=True)
class SelectSettings:
    """What may be removed, and in which order.

    Attributes:
        ranking: "global" (all units by score), "local" (the same share of every family), "cost" (by score per share of the cost saved:
            for scores that stand for growth of the loss, that is "taylor" and "fisher" without normalisation).
        multiple: kept widths of larger families of channels, neurons and head dimensions are multiples of it; 1 for any.
        min_channels: units that every family keeps.
        max_sparsity: largest share that a family loses.
        ignore: layers that keep all their outputs, as shell patterns on dotted names; a name covers the layers inside it.
        protect: layers that stay exactly as they are, inputs included.
        kinds: of `KINDS`, that may be removed.
        multiples: other multiples for single kinds.

    Raises:
        PruneError: an unknown ranking or kind, or a number out of range.
    """

    ranking: str = "global"
    multiple: int = 1
    min_channels: int = 1
    max_sparsity: float = 0.9
    ignore: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS
    multiples: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_known("ranking", (self.ranking,), RANKINGS)
        check_known("kind of family", (*self.kinds, *self.multiples), KINDS)
        if min(self.multiple, self.min_channels, *self.multiples.values()) < 1:
            raise PruneError("multiple and min_channels must be 1 or more", f"they are {self.multiple} and {self.min_channels}", "")
        if not 0 < self.max_sparsity <= 1:
            raise PruneError(f"max_sparsity is {self.max_sparsity:g}", "it must be above 0, at most 1", "0.9 keeps a tenth of every layer.")

    def multiple_of(self, kind: str) -> int:
        """What kept widths of this kind of family are a multiple of."""
        return self.multiples.get(kind, self.multiple if kind in _TILED else 1)


@dataclass(frozen=True)
class Selection:
    """What to remove.

    Attributes:
        removed: bool (unit_count,).
        reached: in the terms of the budget's limit.
        notes: one line per family that loses units.
    """

    removed: np.ndarray
    reached: float
    notes: tuple[str, ...]


def choose(
    structure: Structure, scores: np.ndarray, budget: Budget, settings: SelectSettings | None = None, cost: Cost | None = None
) -> Selection:
    """Remove the lowest-scored units until the budget is met; then, but for a local ranking, give back what the budget leaves room for.

    Args:
        structure: of the model at hand.
        scores: float (unit_count,), see `importance.scores`.
        budget: to land at or just beyond.
        settings: limits and order.
        cost: for "bytes" (see `bytes_cost`) and "latency"; others count for themselves.

    Raises:
        PruneError: the budget cannot be reached (says the most that can), a pattern matches no layer (names the nearest), or there is
            nothing to remove.
    """
    settings = settings or SelectSettings()
    cost = cost_of(structure, budget.kind, cost)
    families = allowed(structure, settings)
    search = _Search(structure, scores, settings, families, cost)
    whole = cost(search.nothing)
    target = budget.ceiling(whole)
    if whole <= target:
        return Selection(search.nothing, budget.reached(whole, whole), ("nothing to remove: the budget is met",))
    position = search.reach(target)
    if position is None:
        best = budget.reached(search.smallest_cost(), whole)
        raise PruneError(
            f"{budget.kind} {budget.limit:g} cannot be reached",
            f"the most is {best:.3g} with max_sparsity {settings.max_sparsity:g}, min_channels {settings.min_channels}"
            f" and {len(families)} of {len(structure.families)} families allowed",
            "Ask for less, or loosen these settings.",
        )
    counts = search.counts(position)
    if settings.ranking != "local":  # whose shares would not be equal any more
        counts = search.give_back(counts, target)
    removed = search.removed(counts)
    return Selection(removed, budget.reached(cost(removed), whole), _notes(families, counts))


def allowed(structure: Structure, settings: SelectSettings) -> tuple[Family, ...]:
    """The families that the settings let shrink.

    Raises:
        PruneError: a pattern matches no layer (names the nearest), or nothing is left.
    """
    owners: dict[int, set[str]] = {}
    unit_family = {unit: family.index for family in structure.families for unit in family.units}
    for footprint in structure.footprints:
        if footprint.role != "in":
            owners.setdefault(unit_family[int(footprint.unit[0])], set()).add(footprint.tensor.rpartition(".")[0])
    known = sorted({name.rpartition(".")[0] for name in structure.tensors.names.values()} - {""})
    ignored, protected = matching_layers(settings.ignore, known), matching_layers(settings.protect, known)
    found = tuple(
        family
        for family in structure.families
        if family.kind in settings.kinds
        and len(family.units) > 1
        and not ignored & ({family.name} | owners.get(family.index, set()))
        and not protected & set(family.layers)
    )
    if not found:
        why = f"{len(structure.families)} families, all excluded by the settings" if structure.families else "every channel is pinned"
        raise PruneError("there is nothing to prune", why, "Loosen `ignore`, `protect` and `kinds`, or look at the list of pinned layers.")
    return found


class _Search:
    """How many units every family loses, as a function of one position in the ranking of all units."""

    def __init__(self, structure: Structure, scores: np.ndarray, settings: SelectSettings, families: Sequence[Family], cost: Cost) -> None:
        self.nothing = np.zeros(structure.unit_count, dtype=bool)
        self._structure, self._cost = structure, cost
        self._units = [np.asarray(f.units)[np.argsort(scores[np.asarray(f.units)], kind="stable")] for f in families]
        self._widths = [_widths(len(f.units), settings, settings.multiple_of(f.kind)) for f in families]
        keys = [self._keys(units, scores, settings.ranking) for units in self._units]
        owner = np.concatenate([np.full(len(units), i) for i, units in enumerate(self._units)])
        self._order = owner[np.argsort(np.concatenate(keys), kind="stable")]

    def _keys(self, units: np.ndarray, scores: np.ndarray, ranking: str) -> np.ndarray:
        if ranking == "local":
            return (np.arange(len(units)) + 0.5) / len(units)
        if ranking == "global":
            return np.asarray(scores[units])
        one = self.nothing.copy()
        one[units[0]] = True
        whole = self._cost(self.nothing)
        saved = max(whole - self._cost(one), whole * 1e-9) / whole
        return np.asarray(scores[units] / saved)

    def counts(self, position: int) -> np.ndarray:
        """Units that each family loses when the first `position` of the ranking should go, rounded to widths it may have."""
        wanted = np.bincount(self._order[:position], minlength=len(self._units))
        kept = [widths[np.argmin(np.abs(widths - (len(u) - w)))] for u, widths, w in zip(self._units, self._widths, wanted, strict=True)]
        return np.array([len(u) - k for u, k in zip(self._units, kept, strict=True)])

    def removed(self, counts: np.ndarray) -> np.ndarray:
        """Bool (unit_count,): the lowest-scored units of each family."""
        removed = self.nothing.copy()
        for units, count in zip(self._units, counts, strict=True):
            removed[units[:count]] = True
        return removed

    def reach(self, target: float) -> int | None:
        """The first position whose cost is at most `target`; None where none is, or where the model would fall apart before."""
        last = self._last()
        if self._cost(self.removed(self.counts(last))) > target:
            return None
        return self._first(lambda removed: self._cost(removed) <= target, last)

    def smallest_cost(self) -> float:
        """Cost at the last position."""
        return self._cost(self.removed(self.counts(self._last())))

    def _last(self) -> int:
        """The last position that leaves every tensor at least one index."""
        end = len(self._order)
        if self._structure.smallest(self.removed(self.counts(end))) > 0:
            return end
        return self._first(lambda removed: self._structure.smallest(removed) == 0, end) - 1

    def _first(self, holds: Callable[[np.ndarray], bool], high: int) -> int:
        """The first position, at most `high`, where something holds that holds at `high`, not at 0, and never stops holding."""
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(self.removed(self.counts(middle))) else (middle, high)
        return high

    def give_back(self, counts: np.ndarray, target: float) -> np.ndarray:
        """Widen families again while the cost stays at most `target`, those whose next units rank highest first."""
        ends = {int(i): position for position, i in enumerate(self._order)}
        counts = counts.copy()
        for i in sorted(range(len(counts)), key=lambda i: -ends[i]):
            while counts[i] > 0:
                kept = len(self._units[i]) - counts[i]
                trial = counts.copy()
                trial[i] = len(self._units[i]) - self._widths[i][self._widths[i] > kept].min()
                if self._cost(self.removed(trial)) > target:
                    break
                counts = trial
        return counts


def _widths(size: int, settings: SelectSettings, multiple: int) -> np.ndarray:
    """Widths a family of `size` units may have, ascending; its own size is always one."""
    least = min(size, max(settings.min_channels, int(np.ceil(size * (1 - settings.max_sparsity) - 1e-9)), 1))
    multiple = multiple if size > multiple else 1
    return np.array([*(width for width in range(multiple, size, multiple) if width >= least), size])


def _notes(families: Sequence[Family], counts: np.ndarray) -> tuple[str, ...]:
    return tuple(
        f"{family.name}: {len(family.units)} -> {len(family.units) - count} {family.kind}"
        for family, count in zip(families, counts, strict=True)
        if count
    )
