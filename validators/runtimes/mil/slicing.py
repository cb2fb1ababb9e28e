"""Slices, padding and bands (iOS15/17.tensor_transformation, iOS15.tensor_operation, iOS18.tensor_transformation)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import flags, ints


def _ranges(sizes: torch.Size, begin: Any, end: Any, stride: Any, masks: tuple[Any, Any]) -> list[range]:
    """The positions each dimension takes, by numpy's slicing rules (negative begin, end and stride included)."""
    starts, stops = ints(begin), ints(end)
    steps = ints(stride) if stride is not None else [1] * len(sizes)
    open_begin, open_end = (flags(mask, len(sizes)) for mask in masks)
    return [
        range(*slice(None if open_begin[i] else starts[i], None if open_end[i] else stops[i], steps[i]).indices(size))
        for i, size in enumerate(sizes)
    ]


@mil_op("slice_by_index", exact=True)
def slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """x[begin:end:stride] per dimension; masked begins and ends are open, squeezed dimensions take one element and go."""
    squeezed = flags(squeeze_mask, x.ndim)
    starts = ints(begin)
    for axis, places in enumerate(_ranges(x.shape, begin, end, stride, (begin_mask, end_mask))):
        if squeezed[axis]:
            x = x.narrow(axis, starts[axis] % x.shape[axis], 1)
        elif len(places) == 0 or places.step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        elif places.step > 1:
            x = x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places)))
    return x.squeeze(tuple(i for i, gone in enumerate(squeezed) if gone))


@mil_op("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    """`size` elements of each dimension from `begin` on; a size of -1 takes the rest."""
    for axis, (start, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        first = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@mil_op("slice_update", exact=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """A copy of `x` in which the slice (see `slice_by_index`) holds `update`."""
    squeezed = flags(squeeze_mask, x.ndim)
    starts = ints(begin)
    places = [
        torch.tensor([starts[i] % x.shape[i]] if squeezed[i] else list(taken))
        for i, taken in enumerate(_ranges(x.shape, begin, end, stride, (begin_mask, end_mask)))
    ]
    grid = torch.meshgrid(*places, indexing="ij")
    return x.index_put(grid, update.reshape(grid[0].shape).to(x.dtype))


@mil_op("pad", exact=True)
def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last dimensions: `pad` lists (before, after) for each of them, first to last."""
    flat = ints(pad)
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=float(constant_val))
    for offset, (before, after) in enumerate(pairs):
        axis = x.ndim - len(pairs) + offset
        if before or after:
            x = x.index_select(axis, _mirrored(x.shape[axis], before, after, reflect=mode == "reflect"))
    return x


def _mirrored(size: int, before: int, after: int, *, reflect: bool) -> Tensor:
    """Source positions of a reflected (edge not repeated) or replicated (edge repeated) padding."""
    places = torch.arange(-before, size + after)
    if reflect:
        places = places.abs()
        places = torch.where(places >= size, 2 * (size - 1) - places, places)
    return places.clamp(0, size - 1)


@mil_op("band_part", exact=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero everything outside a band of the innermost matrices; a negative bound keeps that whole side."""
    row, column = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None, :]
    inside = torch.ones((x.shape[-2], x.shape[-1]), dtype=torch.bool)
    if lower >= 0:
        inside &= (row - column) <= lower
    if upper >= 0:
        inside &= (column - row) <= upper
    return torch.where(inside, x, torch.zeros_like(x))
