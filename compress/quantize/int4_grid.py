"""The 4-bit grid of each group: a scale and a zero point, chosen by the squared error that rounding to it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepress.compress.quantize.int4_op import LEVELS, MIDDLE, Int4Weight

#: Shares of a group's range that are tried as the range of its grid: what lies outside is clipped.
SHRINKS = tuple(1.0 - step / 40 for step in range(21))
#: Weights searched at a time; bounds the memory of the search.
_AT_ONCE = 1 << 22
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Grid:
    """Scales and zero points, both float32 (outputs, groups); zero points are whole numbers of 0 to 15."""

    scale: Tensor
    zero: Tensor

    def integers(self, weight: Tensor, groups: Tensor | slice = slice(None)) -> Tensor:
        """The nearest integers (float32) of columns (outputs, n) of a weight that belong to `groups`, one per column."""
        return (torch.round(weight / self.scale[:, groups]) + self.zero[:, groups]).clamp_(0, LEVELS)

    def rounded(self, weight: Tensor) -> Int4Weight:
        """Round a weight (outputs, inputs) to the nearest points."""
        groups = torch.arange(self.scale.shape[1]).repeat_interleave(weight.shape[1] // self.scale.shape[1])
        return self.weight(self.integers(weight, groups))

    def weight(self, integers: Tensor) -> Int4Weight:
        """Integers (outputs, inputs) on this grid."""
        return Int4Weight(integers.to(torch.uint8), self.scale, self.zero.to(torch.uint8))


def search_grid(weight: Tensor, group: int, symmetric: bool, importance: Tensor | None = None, clip: bool = True) -> Grid:
    """The grid of every group with the smallest squared error after rounding to nearest.

    Args:
        weight: (outputs, inputs), float32; `group` divides inputs.
        group: consecutive inputs that share a scale.
        symmetric: zero point 8, else the zero point that fits the group's range best.
        importance: (inputs,) weight of each input's squared error, e.g. its mean square; None for equal ones.
        clip: try ranges down to half of the group's own; False takes the whole range.
    """
    rows = max(1, _AT_ONCE // weight.shape[1])
    pieces = [_search(piece, group, symmetric, importance, SHRINKS if clip else SHRINKS[:1]) for piece in weight.split(rows)]
    return Grid(torch.cat([piece.scale for piece in pieces]), torch.cat([piece.zero for piece in pieces]))


def _search(weight: Tensor, group: int, symmetric: bool, importance: Tensor | None, shrinks: tuple[float, ...]) -> Grid:
    blocks = weight.reshape(len(weight), -1, group)
    costs = None if importance is None else importance.to(torch.float32).reshape(1, -1, group)
    low, high = blocks.amin(-1).clamp(max=0.0), blocks.amax(-1).clamp(min=0.0)
    best = Grid(torch.ones_like(low), torch.full_like(low, float(MIDDLE)))
    least = torch.full_like(low, float("inf"))
    for shrink in shrinks:
        grid = _grid(low * shrink, high * shrink, symmetric)
        steps = (torch.round(blocks / grid.scale[..., None]) + grid.zero[..., None]).clamp_(0, LEVELS) - grid.zero[..., None]
        error = (steps * grid.scale[..., None] - blocks).square_()
        total = (error if costs is None else error * costs).sum(-1)
        better = total < least
        least = torch.where(better, total, least)
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero))
    return best


def _grid(low: Tensor, high: Tensor, symmetric: bool) -> Grid:
    """The grid that just covers the range from `low` (at most 0) to `high` (at least 0)."""
    if symmetric:
        scale = (torch.maximum(-low, high) / (LEVELS - MIDDLE)).clamp(min=_SMALLEST)
        return Grid(scale, torch.full_like(scale, float(MIDDLE)))
    scale = ((high - low) / LEVELS).clamp(min=_SMALLEST)
    return Grid(scale, torch.round(-low / scale).clamp(0, LEVELS))
