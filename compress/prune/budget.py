"""How small the model has to become, and what a model with units removed costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from torch.export import ExportedProgram

from edgepress.compress.prune.structure import Structure
from edgepress.targets.errors import PruneError

BUDGETS = ("speedup", "parameters", "bytes", "latency")
#: removed (bool (unit_count,)) -> what the model without these units costs, in any unit above 0.
Cost = Callable[[np.ndarray], float]


def check_known(what: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a name that is not one of `known`.

    Raises:
        PruneError: names the nearest.
    """
    for value in values:
        if value not in known:
            near = get_close_matches(str(value).lower(), known, 1)
            raise PruneError(f"unknown {what} {value!r}", "", f"Did you mean {near[0]!r}?" if near else f"Use {', '.join(known)}.")


@dataclass(frozen=True)
class Budget:
    """How small the model has to become.

    Attributes:
        kind: "speedup" (fold fewer multiply-accumulates), "parameters" or "bytes" (share that is kept), "latency" (milliseconds).
        limit: above 1 for "speedup", between 0 and 1 for shares, above 0 for "latency".
        base: cost of the model that the ratio or share is counted from; None for the one at hand. Not used by "latency".

    Raises:
        PruneError: an unknown kind or a limit out of range.
    """

    kind: str
    limit: float
    base: float | None = None

    def __post_init__(self) -> None:
        check_known("budget", (self.kind,), BUDGETS)
        low, high = {"speedup": (1.0, np.inf), "latency": (0.0, np.inf)}.get(self.kind, (0.0, 1.0))
        if not low < self.limit < high:
            span = f"above {low:g}" if high == np.inf else f"between {low:g} and {high:g}"
            raise PruneError(f"budget {self.kind} is {self.limit:g}", f"it must be {span}", "")

    def ceiling(self, whole: float) -> float:
        """The cost to come under, where `whole` is that of the model at hand."""
        base = whole if self.base is None else self.base
        return {"speedup": base / self.limit, "latency": self.limit}.get(self.kind, base * self.limit)

    def reached(self, cost: float, whole: float) -> float:
        """What a model of this cost reaches, in the terms of `limit`."""
        base = whole if self.base is None else self.base
        return {"speedup": base / cost, "latency": cost}.get(self.kind, cost / base)

    def steps(self, count: int, whole: float) -> tuple[Budget, ...]:
        """Budgets on the way to this one, for pruning in `count` rounds; each shrinks the cost by the same factor.

        Args:
            count: 1 or more.
            whole: cost of the model before the first round; every step counts from it, however small the model has become.

        Raises:
            PruneError: count below 1.
        """
        if count < 1:
            raise PruneError(f"pruning in {count} steps", "", "Take 1 or more.")
        factor = self.ceiling(whole) / whole
        costs = [whole * factor ** (step / count) for step in range(1, count)]
        return (*(Budget(self.kind, self.reached(cost, whole), whole) for cost in costs), Budget(self.kind, self.limit, whole))


def cost_of(structure: Structure, kind: str, cost: Cost | None = None) -> Cost:
    """The cost that a kind of budget limits.

    Raises:
        PruneError: "bytes" and "latency" need one from outside.
    """
    if kind == "speedup":
        return lambda removed: float(structure.macs(removed))
    if kind == "parameters":
        return lambda removed: float(structure.parameters(removed))
    if cost is None:
        raise PruneError(f"a budget of {kind} needs to know the cost", "", "Give `cost`.")
    return cost


def bytes_cost(program: ExportedProgram, structure: Structure) -> Cost:
    """Bytes of parameters and buffers left.

    Args:
        program: whose dtypes count.
        structure: `analyse(program)`.
    """
    tensors = {name: (tuple(value.shape), value.element_size()) for name, value in program.state_dict.items()}

    def cost(removed: np.ndarray) -> float:
        keeps = structure.keeps(removed)
        total = 0
        for name, (shape, size) in tensors.items():
            kept = keeps.get(name, (None,) * len(shape))
            total += size * int(np.prod([full if k is None else len(k) for full, k in zip(shape, kept, strict=True)], dtype=np.int64))
        return float(total)

    return cost
