"""Rounding that is learnt: each weight goes up or down by what answers lose (Nagel et al. 2020, sections 3.3 and 4).

`adaround.py` asks it of one layer, `block_reconstruction.py` of the layers of a block together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.layer import WeightGrid
from edgepress.compress.quantize.learning import mean_error, samples_per_step
from edgepress.targets.progress import progress

#: Ends of the stretched sigmoid (equation 23): it reaches 0 and 1, where its gradient is not lost.
LOW, HIGH = -0.1, 1.1
#: Steps between two lines of progress.
_REPORT = 50


@dataclass(frozen=True)
class RoundingOptions:
    """How rounding is learnt.

    Attributes:
        steps: of Adam.
        lr: its learning rate.
        batch: most samples per step.
        positions: a step takes no more samples than have this many output positions (pixels, tokens) together, but one at least.
        strength: weight of the regularizer that drives every weight to one side, against an error of 1 for rounding to nearest.
        warmup: share of the steps before it begins.
        beta: exponent of the regularizer, annealed from the first value (only weights near a side are held there) to the second.
    """

    steps: int = 1000
    lr: float = 1e-2
    batch: int = 32
    positions: int = 2048
    strength: float = 10.0
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)


@dataclass(frozen=True)
class Task:
    """What is rounded, and what it costs.

    Attributes:
        name: for progress.
        grids: layer -> its weight.
        samples: how many there are.
        positions: output positions of one sample.
        error: (layer -> rounded weight, indices of samples) -> mean squared error of what they answer.
    """

    name: str
    grids: Mapping[Node, WeightGrid]
    samples: int
    positions: int
    error: Callable[[Mapping[Node, Tensor], Tensor], Tensor]


def learn_rounding(task: Task, seed: int, options: RoundingOptions) -> Mapping[Node, Tensor] | None:
    """Round every weight of a task up or down.

    Args:
        task: see `Task`.
        seed: of the samples that steps draw.
        options: see `RoundingOptions`.

    Returns:
        Layer -> its weight on the grid, each integer at most one away from the nearest; None where rounding to nearest is no worse on
        all samples.
    """
    nearest = {node: grid.nearest for node, grid in task.grids.items()}
    size = samples_per_step(task.positions, task.samples, options.batch, options.positions)
    before = mean_error(lambda index: task.error(nearest, index), task.samples, size)
    if before == 0:
        return None
    with torch.enable_grad():
        learnt = _learn(task, before, size, seed, options)
    return learnt if mean_error(lambda index: task.error(learnt, index), task.samples, size) < before else None


class _Rounding:
    """A weight between its two neighbours on the grid: a learnt variable per element says which one (equations 22 and 23)."""

    def __init__(self, grid: WeightGrid) -> None:
        steps = grid.steps.detach()
        self._grid, self._down, self._ends = grid, steps.floor(), grid.free
        self._free = (self._down >= self._ends[0]) & (self._down < self._ends[1])
        share = (steps - self._down).clamp(1e-4, 1 - 1e-4)
        inside = (share - LOW) / (HIGH - LOW)
        self.variable = torch.log(inside / (1 - inside)).requires_grad_()

    def share(self) -> Tensor:
        """How far up each element is, 0 to 1."""
        return (torch.sigmoid(self.variable) * (HIGH - LOW) + LOW).clamp(0, 1)

    def weight(self, share: Tensor) -> Tensor:
        """The weight with these shares of a step, within the ends of each element."""
        return self._grid.value((self._down + share).clamp(*self._ends))

    def undecided(self, share: Tensor, beta: float) -> Tensor:
        """The regularizer of each free element (equation 24): 0 where it is at a side, 1 in the middle."""
        return 1 - (2 * share[self._free] - 1).abs().pow(beta)

    def hard(self) -> Tensor:
        """Every element on the grid."""
        return self.weight((self.share() >= 0.5).float()).detach()


def _learn(task: Task, before: float, size: int, seed: int, options: RoundingOptions) -> Mapping[Node, Tensor]:
    roundings = {node: _Rounding(grid) for node, grid in task.grids.items()}
    adam = torch.optim.Adam([rounding.variable for rounding in roundings.values()], lr=options.lr)
    random = torch.Generator().manual_seed(seed)
    for step in range(options.steps):
        if step % _REPORT == 0:
            progress(f"learning to round {task.name}", step, options.steps)
        index = torch.randint(task.samples, (size,), generator=random)
        shares = {node: rounding.share() for node, rounding in roundings.items()}
        weights = {node: rounding.weight(shares[node]) for node, rounding in roundings.items()}
        loss = task.error(weights, index) / before
        beta = _beta(step, options)
        if beta is not None:
            undecided = torch.cat([rounding.undecided(shares[node], beta) for node, rounding in roundings.items()])
            loss = loss + options.strength * undecided.sum() / max(len(undecided), 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {node: rounding.hard() for node, rounding in roundings.items()}


def _beta(step: int, options: RoundingOptions) -> float | None:
    """The exponent at a step, by half a cosine; None while the regularizer has not begun."""
    begin, (first, last) = options.warmup * options.steps, options.beta
    if step < begin:
        return None
    through = (step - begin) / (options.steps - begin)
    return last + 0.5 * (first - last) * (1 + math.cos(through * math.pi))
