"""Training that pushes whole units towards zero before they are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgepress.compress.prune.select import check_known
from edgepress.compress.prune.structure import Structure
from edgepress.targets.errors import PruneError

PENALTIES = ("lasso", "growing")
#: Roles of weights that a unit is judged by; biases carry no magnitude of it.
_ROLES = frozenset({"out", "in", "norm"})
_EPSILON = 1e-12

#: (module, positional inputs, labels or None, rows of the batch) -> scalar.
Objective = Callable[[nn.Module, tuple[Tensor, ...], Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class SparsitySettings:
    """How hard, and by which rule.

    Attributes:
        penalty: "lasso" or "growing", see `GroupPenalty`.
        strength: factor of the penalty in the loss, above 0.
        alpha: of "growing": the least important unit of a family is pushed 2^alpha times as hard as the most important one.
        refresh: of "growing": training steps after which importance is measured again.

    Raises:
        PruneError: an unknown penalty or a number out of range.
    """

    penalty: str = "growing"
    strength: float = 1e-4
    alpha: float = 4.0
    refresh: int = 100

    def __post_init__(self) -> None:
        check_known("sparsity penalty", (self.penalty,), PENALTIES)
        if not self.strength > 0 or not self.alpha >= 0 or self.refresh < 1:
            values = f"strength {self.strength:g}, alpha {self.alpha:g}, refresh {self.refresh}"
            raise PruneError(f"sparsity training with {values}", "strength must be above 0, alpha 0 or more, refresh 1 or more", "")


class GroupPenalty:
    """A penalty on the weights that go with each unit, in all layers at once, so that they vanish together.

    - "lasso": sum over units of sqrt(number of weights) * ||w|| (Yuan & Lin 2006, equation 2.1): drives whole units to exactly zero.
    - "growing": sum over units of 2^(alpha * (I_max - I) / (I_max - I_min)) * ||w||^2, with the squared norm as I, per family
      (Fang et al. 2023, section 3.4, equations 4 and 5).

    Args:
        module: holds the structure's tensors as parameters of the same names; no wrapper around it.
        structure: of the program that the module was made from.
        settings: rule and strength.

    Raises:
        PruneError: the module has none of the structure's parameters.
    """

    def __init__(self, module: nn.Module, structure: Structure, settings: SparsitySettings | None = None) -> None:
        self._settings = settings or SparsitySettings()
        parameters = dict(module.named_parameters())
        self._count = structure.unit_count
        self._places: list[tuple[nn.Parameter, int, Tensor, Tensor]] = []
        for footprint in structure.footprints:
            if footprint.role in _ROLES and footprint.tensor in parameters:
                weight = parameters[footprint.tensor]
                self._places.append((weight, footprint.dim, torch.from_numpy(footprint.index), torch.from_numpy(footprint.unit)))
        if not self._places:
            raise PruneError("there is nothing to make sparse", "the module has none of the structure's parameters", "Train this program.")
        self._families = [torch.tensor(family.units) for family in structure.families]
        self._sizes = self._sum(lambda weight: torch.ones_like(weight)).detach()
        self._factors: Tensor | None = None
        self._steps = 0

    def __call__(self) -> Tensor:
        """The penalty for the weights as they are now, a float32 scalar with gradients; counts as one training step."""
        squares = self._sum(lambda weight: weight.square())
        if self._settings.penalty == "lasso":
            return self._settings.strength * (self._sizes * (squares + _EPSILON)).sqrt().sum()
        if self._factors is None or self._steps % self._settings.refresh == 0:
            self._factors = self._growth(squares.detach())
        self._steps += 1
        return self._settings.strength * (self._factors.to(squares.device) * squares).sum()

    def norms(self) -> Tensor:
        """||w|| of every unit now, float32 (unit_count,), without gradients."""
        with torch.no_grad():
            return self._sum(lambda weight: weight.square()).sqrt()

    def _growth(self, squares: Tensor) -> Tensor:
        factors = torch.zeros_like(squares)
        for units in self._families:
            importance = squares[units]
            span = (importance.max() - importance.min()).clamp_min(_EPSILON)
            factors[units] = 2 ** (self._settings.alpha * (importance.max() - importance) / span)
        return factors

    def _sum(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a value of every weight to the units that it goes with."""
        total = torch.zeros(self._count, device=self._places[0][0].device)
        known: dict[tuple[int, int], Tensor] = {}
        for weight, dim, index, unit in self._places:
            key = (id(weight), dim)
            if key not in known:
                others = [i for i in range(weight.ndim) if i != dim]
                values = value(weight.float())
                known[key] = values.sum(dim=others) if others else values
            total = total.index_add(0, unit.to(total.device), known[key][index.to(total.device)])
        return total


class SparseObjective:
    """An objective plus a penalty, itself an objective of `compress.train.train`.

    Args:
        objective: what the model learns.
        penalty: on its weights.
    """

    def __init__(self, objective: Objective, penalty: GroupPenalty) -> None:
        self._objective, self._penalty = objective, penalty

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        """The loss of a batch, a scalar; see the objective inside."""
        return self._objective(module, inputs, labels, index) + self._penalty()

    def modules(self) -> Sequence[nn.Module]:
        """What the objective inside trains along."""
        inner = getattr(self._objective, "modules", None)
        return tuple(inner()) if inner is not None else ()
