"""Resizing of maps in gathers and weighted sums, for the sizes and scales that a runtime's own operator takes for others.

torch's `nearest` reads input `floor(i / scale)`, and its linear modes the position `(i + 0.5) / scale - 0.5`. The scale is the one that was
asked for, 1.3 also where it makes 15 of 12; runtimes take the ratio of the sizes, and LiteRT the pixel nearest to the centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten
_Scales = Sequence[float | None]


def resizing(*, centres: bool) -> dict[Any, Callable[..., Any]]:
    """Operators that resize -> what to compute in their place; `NotImplemented` where the runtime's own gives the same.

    Args:
        centres: the runtime's `nearest` reads the pixel nearest to a centre, which is torch's at whole ratios of the sizes alone.
    """
    table: dict[Any, Callable[..., Any]] = {}
    for op in (aten.upsample_nearest1d, aten.upsample_nearest2d):
        table[op.vec] = lambda x, sizes, scales: _nearest(x, *_asked(x, sizes, scales), centres)
        table[op.default] = lambda x, sizes, *scales: _nearest(x, sizes, scales or [None] * len(sizes), centres)
    for op in (aten.upsample_linear1d, aten.upsample_bilinear2d):
        table[op.vec] = lambda x, sizes, corners, scales: _linear(x, *_asked(x, sizes, scales), corners)
        table[op.default] = lambda x, sizes, corners, *scales: _linear(x, sizes, scales or [None] * len(sizes), corners)
    return table


def _asked(x: torch.Tensor, sizes: Sequence[int] | None, scales: Sequence[float] | None) -> tuple[Sequence[int], _Scales]:
    """Sizes and scales of a call that gives one of the two."""
    if scales is None:
        return sizes or (), [None] * len(sizes or ())
    return [int(extent * scale) for extent, scale in zip(x.shape[2:], scales, strict=True)], scales


def _nearest(x: torch.Tensor, sizes: Sequence[int], scales: _Scales, centres: bool) -> Any:
    extents = x.shape[2:]
    scales = _own(extents, sizes, scales, (1, 2) if len(sizes) > 1 else ())
    if not any(scales) and not (centres and any(size % extent for extent, size in zip(extents, sizes, strict=True))):
        return NotImplemented
    for dim, (extent, size, scale) in enumerate(zip(extents, sizes, scales, strict=True), start=2):
        x = _taken(x, dim, (torch.arange(size, dtype=torch.float32) * _step(extent, size, scale)).to(torch.int64))
    return x


def _linear(x: torch.Tensor, sizes: Sequence[int], scales: _Scales, corners: bool) -> Any:
    extents = x.shape[2:]
    scales = _own(extents, sizes, scales, (1,))
    if corners or not any(scales):  # between corners scales mean nothing
        return NotImplemented
    for dim, (extent, size, scale) in enumerate(zip(extents, sizes, scales, strict=True), start=2):
        place = ((torch.arange(size, dtype=torch.float32) + 0.5) * _step(extent, size, scale) - 0.5).clamp(0, extent - 1)
        low = place.to(torch.int64)
        weight = (place - low).reshape(-1, *[1] * (x.dim() - dim - 1))
        below, above = _taken(x, dim, low), _taken(x, dim, (low + 1).clamp(max=extent - 1))
        x = below + (above - below) * weight
    return x


def _own(extents: Sequence[int], sizes: Sequence[int], scales: _Scales, whole: Sequence[int]) -> _Scales:
    """Scales that are not the ratio of the sizes; `whole`: where that is one of these, torch itself takes it for the scale."""
    return [
        None if scale is None or size in (extent * scale, *(extent * factor for factor in whole)) else scale
        for extent, size, scale in zip(extents, sizes, scales, strict=True)
    ]


def _step(extent: int, size: int, scale: float | None) -> float:
    return 1 / scale if scale else extent / size


def _taken(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    taken: torch.Tensor = aten._unsafe_index(x, [*[None] * dim, index])  # without checks that would be in the file
    return taken
