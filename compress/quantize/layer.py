"""One layer with integer weights, as algorithms that refine a rendering see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.graph import layer_of


@dataclass(frozen=True)
class WeightGrid:
    """A weight and the grid it is rounded to.

    Attributes:
        weight: float weight.
        scale: of its integers, broadcastable to it.
        bounds: lowest and highest integer, of all elements or of each.
        offset: what is added to an integer before it is scaled: 0, or 0.5 where the levels lie around zero and none is zero.
    """

    weight: Tensor
    scale: Tensor
    bounds: tuple[int, int] | tuple[Tensor, Tensor]
    offset: float = 0.0

    @property
    def steps(self) -> Tensor:
        """What is rounded to an integer: the weight in steps of the scale, less the offset."""
        return self.weight / self.scale - self.offset

    @property
    def integers(self) -> Tensor:
        """The nearest ones within the bounds, as floats."""
        return self.steps.round().clamp(*self.bounds)

    @property
    def nearest(self) -> Tensor:
        """The weight rounded to nearest, in floats."""
        return self.value(self.integers)

    def value(self, integers: Tensor) -> Tensor:
        """What integers stand for, in floats."""
        return (integers + self.offset) * self.scale

    @property
    def free(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest integer that an algorithm may choose for each element: zeros stay, so that masks survive."""
        lowest, highest = (torch.as_tensor(bound, dtype=self.weight.dtype).expand_as(self.weight) for bound in self.bounds)
        if self.offset:
            return lowest, highest
        return torch.where(self.weight == 0, 0.0, lowest), torch.where(self.weight == 0, 0.0, highest)


@dataclass(frozen=True)
class Layer:
    """A layer with integer weights, at its place in the quantized model.

    Attributes:
        node: the op.
        inputs: what it reads there: floats on the grid of its input's integers, (samples, ...).
        target: what the float model's layer answers, before an activation that is fused into it, (samples, ...).
        grid: float weight, and the grid of its integers.
        rounded: the weight on that grid, as it will be stored.
        bias: (output channels,), None where it has none.
        tail: the activation fused into it, elementwise; the identity where there is none.
        channels: dimension of output channels in `target`.
        weights: what an error at each sample and position does to the model's outputs, the shape of `target` without its channels, 1 on
            average; None where all count alike.
    """

    node: Node
    inputs: Tensor
    target: Tensor
    grid: WeightGrid
    rounded: Tensor
    bias: Tensor | None
    tail: Callable[[Tensor], Tensor]
    channels: int
    weights: Tensor | None = None

    @property
    def name(self) -> str:
        """The module of the user's model that makes it."""
        return layer_of(self.node)

    @cached_property
    def answer(self) -> Tensor:
        """What the quantized layer computes, before the activation; kept."""
        rest = self.node.args[3:]
        result: Tensor = self.node.target(self.inputs, self.rounded, self.bias, *rest, **self.node.kwargs)
        return result

    def error(self) -> Tensor:
        """Mean squared error of its answers, activation included, positions by their weights."""
        squares = (self.tail(self.answer) - self.tail(self.target)).square().mean(dim=self.channels)
        return (squares if self.weights is None else squares * self.weights).mean()

    def of(self, samples: Tensor) -> Layer:
        """The same at some of its samples, by their indices."""
        weights = None if self.weights is None else self.weights[samples]
        return replace(self, inputs=self.inputs[samples], target=self.target[samples], weights=weights)


#: Chooses another `rounded` weight on the same grid, or another `bias`.
Refiner = Callable[[Layer], Layer]
