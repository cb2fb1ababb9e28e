"""GPTQ for the integer weights of a layer whose inputs are integers too (`gptq.py` has the algorithm).

The second moments are those of what the quantized layers before it give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.gptq import inverse_factor, rounded_columns
from edgepress.compress.quantize.graph import kind_of, value_of
from edgepress.compress.quantize.layer import Layer
from edgepress.targets.progress import progress

#: Samples from which second moments are taken at least, and positions per input of the layer in the middle. Of a layer that has more than
#: `MOST` per input some are drawn. With twice as many of each, 8-bit weights are no less noisy (benchmarks/quantization.md).
SAMPLES, ROWS, MOST = 32, 28, 100
#: Elements of unfolded inputs that are held at a time.
HELD = 2**24


def gptq(layer: Layer) -> Layer:
    """The layer with other integers; a refiner of `layerwise.refine`.

    Where rounding to nearest answers better on the same samples, or the op is none of linear and 2-d convolution, the layer is left as
    it is.
    """
    columns = _Columns.of(layer)
    if columns is None:
        return layer
    progress(f"rounding the columns of {layer.name}")
    grid = layer.grid
    steps, lowest, highest = (columns.rows(part) for part in (grid.steps, *grid.free))
    groups = [_rounded(moments, steps[i], lowest[i], highest[i]) for i, moments in enumerate(_moments(layer, columns))]
    found = [group for group in groups if group is not None]
    if len(found) < len(groups):
        return layer
    chosen = replace(layer, rounded=grid.value(columns.weight(torch.stack(found))))
    return chosen if float(chosen.error()) < float(layer.error()) else layer


def enough(layers: Sequence[Node]) -> int:
    """How many samples second moments need: `ROWS` positions per input of the layer in the middle, and `SAMPLES` at least."""
    needs = [ROWS * value_of(node.args[1]).numel() / _elements(node) for node in layers]
    return max(SAMPLES, int(median(needs))) if needs else SAMPLES


def _elements(node: Node) -> int:
    """What a layer answers for one sample: its positions, each as often as it has channels."""
    return prod(size for size in value_of(node).shape[1:] if isinstance(size, int))


def _rounded(moments: Tensor, steps: Tensor, lowest: Tensor, highest: Tensor) -> Tensor | None:
    """One group, the inputs first whose errors the others make good the least; None where the moments cannot be factored.

    Args:
        moments: (inputs, inputs).
        steps: what is rounded, (outputs, inputs); a row has one scale, so that errors in steps are made good as errors of weights are.
        lowest: the lowest integer of each.
        highest: the highest.
    """
    found = inverse_factor(moments, lambda inverse: torch.argsort(inverse.diagonal(), stable=True))
    if found is None:
        return None
    order, factor = found
    low, high = lowest.T[order], highest.T[order]
    integers = torch.empty_like(steps)
    integers[:, order] = rounded_columns(steps[:, order], factor, lambda i, left: left.round().clamp(low[i], high[i]))
    return integers


def _moments(layer: Layer, columns: _Columns) -> Tensor:
    """The mean of x x^T over samples and positions by their weights, piece by piece: (groups, inputs, inputs)."""
    moments, seen, random = torch.zeros(()), 0, torch.Generator().manual_seed(0)
    every = layer.target.numel() // len(layer.grid.weight)
    for piece in columns.pieces(len(layer.inputs)):
        read = columns.unfolded(layer.inputs[piece])
        weights = None if layer.weights is None else layer.weights[piece].reshape(len(read), -1)
        wanted = ceil(MOST * read.shape[2] / every * read.shape[3])
        if wanted < read.shape[3]:
            drawn = torch.randperm(read.shape[3], generator=random)[:wanted]
            read, weights = read[..., drawn], None if weights is None else weights[:, drawn]
        read = read.permute(1, 2, 0, 3).flatten(2)
        new = read.shape[2]
        seen += new
        if weights is not None:
            counting = weights.flatten().nonzero().squeeze(1)
            read = (read if len(counting) == new else read[:, :, counting]) * weights.flatten()[counting].sqrt()
        moments = moments * (1 - new / seen) + read @ read.transpose(1, 2) / seen
    return moments


@dataclass(frozen=True)
class _Columns:
    """How a layer's weight and inputs look as matrices, per group."""

    groups: int
    shape: torch.Size
    window: dict[str, tuple[int, int]] | None
    inputs_of_a_sample: int

    @staticmethod
    def of(layer: Layer) -> _Columns | None:
        """None for ops that are none of linear and 2-d convolution with padding by numbers."""
        weight, node = layer.grid.weight, layer.node
        if kind_of(node) == "linear":
            return _Columns(1, weight.shape, None, layer.inputs[0].numel())
        if kind_of(node) != "conv" or weight.dim() != 4 or node.kwargs:
            return None
        given: list[Any] = list(node.args[3:])
        stride, padding, dilation, groups = given + [1, 0, 1, 1][len(given) :]
        if isinstance(padding, str):
            return None
        window = {"kernel_size": tuple(weight.shape[2:]), "stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
        kernel = weight.shape[2] * weight.shape[3]
        return _Columns(groups, weight.shape, window, layer.target[0, 0].numel() * kernel * layer.inputs.shape[1])

    def pieces(self, samples: int) -> Iterator[slice]:
        """As many samples at a time as are held."""
        size = max(HELD // max(self.inputs_of_a_sample, 1), 1)
        return (slice(start, start + size) for start in range(0, samples, size))

    def rows(self, weight: Tensor) -> Tensor:
        """(groups, outputs of a group, inputs of a group)."""
        return weight.reshape(self.groups, self.shape[0] // self.groups, -1)

    def weight(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows.reshape(self.shape)

    def unfolded(self, inputs: Tensor) -> Tensor:
        """(samples, groups, inputs of a group, positions); of a linear layer all samples' positions in one."""
        if self.window is None:
            return inputs.reshape(1, 1, -1, inputs.shape[-1]).transpose(2, 3)
        unfolded = F.unfold(inputs, **self.window)
        return unfolded.reshape(len(inputs), self.groups, -1, unfolded.shape[-1])


def _pair(value: object) -> tuple[int, int]:
    """Both dimensions of an argument of a convolution that may be one number or a list of one or two."""
    numbers = [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]  # type: ignore[call-overload]
    return (numbers[0], numbers[-1])
