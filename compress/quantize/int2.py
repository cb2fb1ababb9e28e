"""Weights of 2 bits: four levels around zero, whose integers of 8 bits are -3, -1, 1 and 3, and four of them to a byte.

A grid with a zero would lose one of the four, or be lopsided: of normally distributed weights the one without leaves 2 dB less noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgepress.compress.quantize.layer import WeightGrid

#: Integers of 2 bits, and what is added to one before it is scaled.
BOUNDS, OFFSET = (-2, 1), 0.5
#: Byte -> the integers of 8 bits that it holds, the one in its lowest bits first: (256, 4), int8.
LEVELS = (2 * (torch.arange(256).unsqueeze(1) >> torch.tensor([0, 2, 4, 6]) & 3) - 3).to(torch.int8)
#: Shares of a row's largest magnitude that are tried as the outer level. A normal distribution wants 1.49 standard deviations.
_SHRINKS = tuple(1.0 - step / 40 for step in range(37))
#: Weights searched at a time; bounds the memory of the search.
_AT_ONCE = 1 << 22


def int2_grid(rows: Tensor) -> WeightGrid:
    """The grid of a weight (rows, n), one scale per row (rows, 1), with the smallest squared error after rounding to nearest."""
    scale = torch.cat([_scale(piece) for piece in rows.split(max(1, _AT_ONCE // rows.shape[1]))])
    return WeightGrid(rows, scale, BOUNDS, OFFSET)


def _scale(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(dim=1, keepdim=True)
    best, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for shrink in _SHRINKS:
        scale = (largest * (shrink / (BOUNDS[1] + OFFSET))).clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros
        error = (WeightGrid(rows, scale, BOUNDS, OFFSET).nearest - rows).square_().sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def pack(integers: Tensor) -> Tensor:
    """Integers -3, -1, 1 and 3 (..., 4 n) as bytes (..., n), uint8: what `LEVELS` takes apart."""
    quarters = ((integers.to(torch.int32) + 3) // 2).unflatten(-1, (-1, 4))
    return (quarters << torch.tensor([0, 2, 4, 6])).sum(dim=-1).to(torch.uint8)
