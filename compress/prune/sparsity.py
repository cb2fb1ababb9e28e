"""Training that pushes whole units towards zero before they are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgepress.compress.prune.budget import check_known
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


class GroupPenalty(nn.Module):  # type: ignore[misc]
    """A penalty on the weights that go with each unit, in all layers at once, so that they vanish together.

    - "lasso": sum over units of sqrt(number of weights) * ||w|| (Yuan & Lin 2006, equation 2.1): drives whole units to exactly zero.
    - "growing": sum over units of 2^(alpha * (I_max - I) / (I_max - I_min)) * ||w||^2, with the squared norm as I, per family
      (Fang et al. 2023, section 3.4, equations 4 and 5).

    It is a module so that its state (the factors of "growing" and their age) is saved and resumed along with what is trained.

    Args:
        module: holds the structure's tensors as parameters of the same names; no wrapper around it. Its parameters stay its own.
        structure: of the program that the module was made from.
        settings: rule and strength.

    Raises:
        PruneError: the module has none of the structure's parameters.
    """

    factors: Tensor
    steps: Tensor

    def __init__(self, module: nn.Module, structure: Structure, settings: SparsitySettings | None = None) -> None:
        super().__init__()
        self._settings = settings or SparsitySettings()
        parameters = dict(module.named_parameters())
        footprints = [each for each in structure.footprints if each.role in _ROLES and each.tensor in parameters]
        if not footprints:
            raise PruneError("there is nothing to make sparse", "the module has none of the structure's parameters", "Train this program.")
        self._places = [(parameters[each.tensor], each.dim) for each in footprints]  # in a list: not registered
        for number, each in enumerate(footprints):
            self.register_buffer(f"index_{number}", torch.from_numpy(each.index), persistent=False)
            self.register_buffer(f"unit_{number}", torch.from_numpy(each.unit), persistent=False)
        self._families = [list(family.units) for family in structure.families]
        self.register_buffer("factors", torch.zeros(structure.unit_count))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sizes", self._sum(torch.ones_like), persistent=False)

    def forward(self) -> Tensor:
        """The penalty for the weights as they are now, a float32 scalar with gradients; counts as one training step."""
        squares = self._sum(torch.square)
        if self._settings.penalty == "lasso":
            return self._settings.strength * (self.sizes * (squares + _EPSILON)).sqrt().sum()
        if int(self.steps) % self._settings.refresh == 0:
            self.factors.copy_(self._growth(squares.detach()))
        self.steps += 1
        return self._settings.strength * (self.factors * squares).sum()

    def norms(self) -> Tensor:
        """||w|| of every unit now, float32 (unit_count,), without gradients."""
        with torch.no_grad():
            return self._sum(torch.square).sqrt()

    def _growth(self, squares: Tensor) -> Tensor:
        factors = torch.zeros_like(squares)
        for units in self._families:
            importance = squares[units]
            span = (importance.max() - importance.min()).clamp_min(_EPSILON)
            factors[units] = 2 ** (self._settings.alpha * (importance.max() - importance) / span)
        return factors

    def _sum(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a value of every weight to the units that it goes with."""
        total = torch.zeros_like(self.factors)
        known: dict[tuple[int, int], Tensor] = {}
        for number, (weight, dim) in enumerate(self._places):
            key = (id(weight), dim)
            if key not in known:
                others = [i for i in range(weight.ndim) if i != dim]
                values = value(weight.float())
                known[key] = values.sum(dim=others) if others else values
            index, unit = self.get_buffer(f"index_{number}"), self.get_buffer(f"unit_{number}")
            total = total.index_add(0, unit, known[key][index])
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
        """What the objective inside trains along, and the penalty for its state."""
        inner = getattr(self._objective, "modules", None)
        return (*(inner() if callable(inner) else ()), self._penalty)
