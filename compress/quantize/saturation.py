"""Weights of 8 bits whose products are summed exactly on x86 CPUs without VNNI too.

There integer kernels multiply unsigned by signed bytes and add two neighbouring products in 16 bits (vpmaddubsw), which saturate. With
any activations, 0 to 255, the sum fits where two weights of one sign come to 128 at most. Weights of 7 bits always do. Of weights of 8
bits few pairs do not: they are cut to it, and the scale of an output is the one that loses least by cutting and rounding together.

Which weights are neighbours is data of the rules: files of weights near their ends and activations of 255 were executed with VNNI and
without (AVX2, AVX-512), and give the same sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.graph import kind_of, value_of
from edgepress.compress.quantize.layer import WeightGrid
from edgepress.targets.rules import QuantRules

#: What the magnitudes of two neighbours of one sign come to at most: 255 times it fits into 16 bits.
LIMIT = 128
#: The integer of the largest weight of an output before pairs are cut. With the first, no two weights exceed the limit.
_ENDS = range(LIMIT // 2, 128, 3)


@dataclass(frozen=True)
class Pairs:
    """How the weights of an output follow each other in its sum.

    Attributes:
        inputs: the dimension of input channels; that of outputs is the first of the others.
        flattened: all positions of a window in a row, their channels side by side; else the channels of one position, of an odd number
            the last by itself.
    """

    inputs: int
    flattened: bool

    def split(self, weight: Tensor) -> Tensor:
        """(outputs, pairs, 2); a zero beside what is by itself."""
        last = weight.movedim(self.inputs, -1)
        rows = last.reshape(len(last), 1, -1) if self.flattened else last.reshape(len(last), -1, last.shape[-1])
        return F.pad(rows, (0, rows.shape[2] % 2)).reshape(len(last), -1, 2)

    def join(self, pairs: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `split`."""
        last = [size for dim, size in enumerate(shape) if dim != self.inputs] + [shape[self.inputs]]
        length = prod(last[1:]) if self.flattened else last[-1]
        rows = pairs.reshape(len(pairs), -1, length + length % 2)
        return rows[..., :length].reshape(last).movedim(-1, self.inputs).contiguous()


@dataclass(frozen=True)
class Guard:
    """What keeps the products of one layer within 16 bits, two added at a time.

    Attributes:
        pairs: which two are added; None where that is not certain: no two of its integers exceed the limit then.
    """

    pairs: Pairs | None

    def grid(self, weight: Tensor, axis: int | None, smallest: Tensor) -> WeightGrid:
        """The grid of an 8-bit weight, in floats, with a scale per index of `axis`, or one, none below `smallest`, which is broadcast."""
        exact = weight.detach()
        largest = exact.abs().amax(dim=[dim for dim in range(weight.dim()) if dim != axis], keepdim=True)
        if self.pairs is None:
            return WeightGrid(weight, (largest / _ENDS[0]).clamp_min(smallest), (-_ENDS[0], _ENDS[0]))
        split = self.pairs.split(exact)
        rows = split if axis is not None else split.reshape(1, -1, 2)
        scale = torch.maximum(_scale(rows, largest.flatten()), smallest.flatten())
        lowest, highest = (self.pairs.join(bound.reshape(split.shape), weight.shape) for bound in _bounds(rows, scale))
        return WeightGrid(weight, scale.reshape(largest.shape), (lowest, highest))


def guard_of(node: Node, weight: torch.Size, rules: QuantRules) -> Guard | None:
    """The guard of a layer.

    Args:
        node: a convolution, transposed or not, or a linear layer.
        weight: the shape of its weight.
        rules: of the runtime.

    Returns:
        None where no two weights can exceed the limit, or no kernel adds the layer's products in 16 bits.
    """
    if not rules.added_in_pairs or 2 * rules.weight_max <= LIMIT:
        return None
    groups, inputs = _groups(node, weight), 0 if kind_of(node) == "conv_transpose" else 1
    if inputs == 1 and weight[1] == 1 and weight[0] == groups:
        return None  # kernels of depthwise convolutions add in 32 bits
    if rules.added_in_pairs == "flattened":
        return Guard(Pairs(inputs, flattened=True))
    if weight[inputs] == 1 or (groups > 1 and (inputs == 0 or weight[inputs] % 2)):
        return Guard(None)  # some kernels take the channels of one position, some a window in a row
    return Guard(Pairs(inputs, flattened=False))


def _groups(node: Node, weight: torch.Size) -> int:
    """Of a convolution; 1 of a linear layer."""
    if kind_of(node) == "linear":
        return 1
    whole = value_of(node if kind_of(node) == "conv_transpose" else node.args[0])
    return int(whole.shape[1 - len(weight)] // weight[1])


def _scale(rows: Tensor, largest: Tensor) -> Tensor:
    """The scale of each row, (rows,): where what rounding adds to the squared error, a twelfth of a step's square per weight, and what
    cutting adds, half of the excess off each of two, are least together.

    Args:
        rows: (rows, pairs, 2).
        largest: magnitude in each row, (rows,).
    """
    together = rows.sum(dim=2).abs()  # of two signs it is below the largest, and never cut
    row, pair = (together > LIMIT / _ENDS[-1] * largest[:, None]).nonzero(as_tuple=True)
    together, largest_of = together[row, pair], largest[row]
    error, found = torch.full_like(largest, torch.inf), torch.full_like(largest, _ENDS[0])
    for end in _ENDS:
        cut = (together - LIMIT / end * largest_of).clamp_min_(0).square_() / 2
        new = (rows[0].numel() / 12 * (largest / end).square()).index_add_(0, row, cut)
        found, error = torch.where(new < error, float(end), found), torch.minimum(new, error)
    return largest / found


def _bounds(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest integer of each weight, whatever its neighbour gets within its own: each shape of `rows`.

    What two neighbours exceed the limit by, rounded to nearest, is cut in halves, and what they are below it is shared.
    """
    steps = rows / scale[:, None, None]
    nearest = steps.round()
    above = (nearest - steps) * nearest.sign()  # the one that was rounded up by more gives the odd one
    first = torch.stack([above[..., 0] >= above[..., 1], above[..., 0] < above[..., 1]], dim=2)

    def bound(part: Tensor) -> Tensor:
        room = (LIMIT - part.sum(dim=2, keepdim=True)) / 2
        return (part + torch.where(first, room.floor(), room.ceil())).clamp_max(_ENDS[-1])

    return -bound((-nearest).clamp_min(0)), bound(nearest.clamp_min(0))
