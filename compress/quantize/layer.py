"""One layer with integer weights, as algorithms that refine a rendering see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.graph import layer_of

#: A weight nearer to the end of the integers than this many steps sets the scale.
_AT_END = 1e-3


@dataclass(frozen=True)
class WeightGrid:
    """A weight and the grid it is rounded to.

    Attributes:
        weight: float weight.
        scale: of its integers, broadcastable to it.
        bounds: lowest and highest integer, of all elements or of each.
        offset: what is added to an integer before it is scaled: 0, or 0.5 where the levels lie around zero and none is zero.
        end: the integer that the largest element has, broadcastable to the weight; None where that is the highest of all.
    """

    weight: Tensor
    scale: Tensor
    bounds: tuple[int, int] | tuple[Tensor, Tensor]
    offset: float = 0.0
    end: Tensor | None = None

    def level(self, steps: Tensor, bounds: tuple[Any, Any] | None = None) -> Tensor:
        """The nearest level within bounds, its own by default, in steps of the scale."""
        return torch.round(steps - self.offset).clamp(*(bounds or self.bounds)) + self.offset

    @property
    def nearest(self) -> Tensor:
        """The weight rounded to nearest, in floats."""
        return self.level(self.weight / self.scale) * self.scale

    @property
    def fixed(self) -> Tensor:
        """Which elements no algorithm moves from their nearest level: the ends, which set the scale, and zeros, so that masks survive."""
        end = self.bounds[1] if self.end is None else self.end
        ends = (self.weight / self.scale).abs() >= end + self.offset - _AT_END
        return ends if self.offset else ends | (self.weight == 0)


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
