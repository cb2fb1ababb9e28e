"""AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", sections 3.3 and 4).

Rounding every weight to the nearest integer is not what keeps a layer's answers nearest: errors of different weights can cancel. Each
weight learns whether to go up or down, by the answers of its layer on calibration samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgepress.compress.quantize.layerwise import Layer
from edgepress.targets.progress import progress

#: Ends of the stretched sigmoid (equation 23): it reaches 0 and 1, where its gradient is not lost.
LOW, HIGH = -0.1, 1.1
#: A weight nearer to the end of the integers than this many steps sets the scale, and stays.
_AT_END = 1e-3
#: Steps between two lines of progress.
_REPORT = 50


@dataclass(frozen=True)
class AdaRoundOptions:
    """How rounding is learnt.

    Attributes:
        steps: of Adam, per layer.
        lr: its learning rate.
        batch: most samples per step.
        positions: a step takes no more samples than have this many output positions (pixels, tokens) together, but one at least.
        strength: weight of the regularizer that drives every weight to one side, against a reconstruction error of 1 for rounding
            to nearest.
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
class AdaRound:
    """Rounds a layer's weights up or down by what its answers lose, activation included; a refiner of `layerwise.refine`.

    The layer reads what the quantized layers before it give, and is compared with the float model's answers (asymmetric
    reconstruction, equation 25). Weights that are zero stay zero, so that masks of zeros survive; the largest weight of a scale stays
    at the end of the integers, so that observers find the same scale. Where nearest rounding is better after all on the same samples,
    the layer keeps it.

    Args:
        seed: of the samples that steps draw.
        options: see `AdaRoundOptions`.
    """

    seed: int
    options: AdaRoundOptions = AdaRoundOptions()

    def __call__(self, layer: Layer) -> Layer:
        """The layer with other integers, each at most one away from its nearest."""
        nearest = _error(layer, self.options)
        if nearest == 0:
            return layer
        with torch.enable_grad():
            rounding = _learn(layer, nearest, self.seed, self.options)
        learnt = replace(layer, rounded=rounding.hard())
        return learnt if _error(learnt, self.options) < nearest else layer


class _Rounding:
    """A weight between its two neighbours on the grid: a learnt variable per element says which one (equations 22 and 23)."""

    def __init__(self, layer: Layer) -> None:
        steps = layer.weight.detach() / layer.scale
        self._layer, self._down = layer, steps.floor()
        share = (steps - self._down).clamp(1e-4, 1 - 1e-4)
        self.free = (layer.weight != 0) & (steps.abs() < layer.bounds[1] - _AT_END)
        inside = (share - LOW) / (HIGH - LOW)
        self.variable = torch.log(inside / (1 - inside)).requires_grad_()

    def share(self) -> Tensor:
        """How far up each element is, 0 to 1."""
        return (torch.sigmoid(self.variable) * (HIGH - LOW) + LOW).clamp(0, 1)

    def weight(self, share: Tensor) -> Tensor:
        """The weight with these shares of a step; what is not free stays rounded to nearest."""
        moved = (self._down + share).clamp(*self._layer.bounds) * self._layer.scale
        return torch.where(self.free, moved, self._layer.rounded)

    def hard(self) -> Tensor:
        """Every element on the grid."""
        return self.weight((self.share() >= 0.5).float()).detach()


def _learn(layer: Layer, nearest: float, seed: int, options: AdaRoundOptions) -> _Rounding:
    rounding = _Rounding(layer)
    adam = torch.optim.Adam([rounding.variable], lr=options.lr)
    random = torch.Generator().manual_seed(seed)
    size, free = _batch(layer, options), int(rounding.free.sum())
    begin = options.warmup * options.steps
    first, last = options.beta
    for step in range(options.steps):
        if step % _REPORT == 0:
            progress(f"learning to round {layer.name}", step, options.steps)
        index = torch.randint(len(layer.inputs), (size,), generator=random)
        share = rounding.share()
        loss = _reconstruction(layer, rounding.weight(share), index) / nearest
        if step >= begin and free:
            through = (step - begin) / (options.steps - begin)
            beta = last + 0.5 * (first - last) * (1 + torch.cos(torch.tensor(through * torch.pi)))
            undecided = 1 - (2 * share[rounding.free] - 1).abs().pow(beta)  # equation 24
            loss = loss + options.strength * undecided.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return rounding


def _reconstruction(layer: Layer, weight: Tensor, index: Tensor) -> Tensor:
    """Mean squared error of the layer's answers after its activation, for some samples."""
    answer = replace(layer, inputs=layer.inputs[index], rounded=weight).answer()
    return (layer.tail(answer) - layer.tail(layer.target[index])).square().mean()


def _batch(layer: Layer, options: AdaRoundOptions) -> int:
    positions: int = max(layer.target[0].numel() // layer.target.shape[layer.channels], 1)
    return max(min(options.batch, options.positions // positions, len(layer.inputs)), 1)


def _error(layer: Layer, options: AdaRoundOptions) -> float:
    """Mean squared error of a layer over all samples."""
    with torch.no_grad():
        pieces = [_reconstruction(layer, layer.rounded, index) * len(index) for index in _batches(layer, options)]
    return float(torch.stack(pieces).sum()) / len(layer.inputs)


def _batches(layer: Layer, options: AdaRoundOptions) -> Iterator[Tensor]:
    yield from torch.arange(len(layer.inputs)).split(_batch(layer, options))
