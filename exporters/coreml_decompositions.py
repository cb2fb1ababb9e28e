"""PyTorch operators written out for coremltools in operators that it has rules for, or whose rules work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import get_decompositions

from edgepress.exporters.antialiasing import ANTIALIASED
from edgepress.exporters.decompositions import PLAIN
from edgepress.exporters.resizing import resizing

_ATEN = torch.ops.aten


def _on_booleans(logical: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """The bitwise op that Core ML has for booleans alone."""
    return lambda x, y: logical(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented


def _new_filled(value: float) -> Callable[..., torch.Tensor]:
    def filled(x: torch.Tensor, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.full(size, value, dtype=dtype or x.dtype)

    return filled


def _full_like(x: torch.Tensor, value: float, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return torch.full(x.shape, value, dtype=dtype or x.dtype)


def _where(condition: torch.Tensor, *choices: torch.Tensor | float) -> torch.Tensor:
    dtype = torch.result_type(*choices)
    tensors = [choice.to(dtype) if isinstance(choice, torch.Tensor) else torch.full([1], choice, dtype=dtype) for choice in choices]
    return torch.where(condition, *tensors)


def _lerp(start: torch.Tensor, end: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    return start + weight * (end - start)


def _floor_divide(x: torch.Tensor, y: torch.Tensor | float) -> Any:
    return torch.floor(x / y) if x.is_floating_point() else NotImplemented


def _remainder(x: torch.Tensor, y: torch.Tensor | float) -> Any:
    return x - torch.floor(x / y) * y if x.is_floating_point() else NotImplemented


def _var_mean(x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False) -> Any:
    return torch.var(x, dim, correction=correction, keepdim=keepdim), torch.mean(x, dim, keepdim)


def _diagonal(x: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    matrices = torch.movedim(x, (dim1, dim2), (-2, -1))
    height, width = matrices.shape[-2:]
    first = offset if offset >= 0 else -offset * width
    count = max(min(height, width - offset) if offset >= 0 else min(height + offset, width), 0)
    return matrices.flatten(-2).index_select(-1, torch.arange(count) * (width + 1) + first)


def _unfold(x: torch.Tensor, dim: int, size: int, step: int) -> torch.Tensor:
    dim %= x.dim()
    count = (x.shape[dim] - size) // step + 1
    index = torch.arange(count)[:, None] * step + torch.arange(size)
    return x.index_select(dim, index.flatten()).unflatten(dim, (count, size)).movedim(dim + 1, -1)


#: Operators whose rules in coremltools 9 fail on what torch exports.
MENDED: dict[Any, Callable[..., Any]] = {
    **resizing(centres=False),  # scales that are not the ratio of the sizes: refused, or that ratio
    **ANTIALIASED,  # pixels are skipped
    **get_decompositions([_ATEN.affine_grid_generator.default]),  # of one matrix, between corners
    _ATEN.diagonal.default: _diagonal,  # of the first two dimensions alone
    _ATEN.floor_divide.default: _floor_divide,  # by one is taken for nothing to do
    _ATEN.full_like.default: _full_like,  # without the type that is asked for, as the next two
    _ATEN.ones_like.default: lambda x, **named: _full_like(x, 1, **named),
    _ATEN.zeros_like.default: lambda x, **named: _full_like(x, 0, **named),
    _ATEN.lerp.Scalar: _lerp,  # through a `where` of no dimension
    _ATEN.lerp.Tensor: _lerp,
    _ATEN.new_ones.default: _new_filled(1),  # not of no dimension
    _ATEN.new_zeros.default: _new_filled(0),
    _ATEN.remainder.Scalar: _remainder,  # through the same
    _ATEN.remainder.Tensor: _remainder,
    _ATEN.var_mean.correction: _var_mean,
    _ATEN.var_mean.dim: lambda x, dim, unbiased=True, keepdim=False: _var_mean(x, dim, correction=int(unbiased), keepdim=keepdim),
    _ATEN.where.Scalar: _where,  # an integer beside floats
    _ATEN.where.ScalarOther: _where,
    _ATEN.where.ScalarSelf: _where,
}

#: Operators without a rule, which torch's own decompositions do not bring into ones that have.
WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    **PLAIN,
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _on_booleans(torch.logical_or),
    _ATEN.__xor__.Tensor: _on_booleans(torch.logical_xor),
    _ATEN.bitwise_or.Tensor: _on_booleans(torch.logical_or),
    _ATEN.bitwise_xor.Tensor: _on_booleans(torch.logical_xor),
    _ATEN.erfc.default: lambda x: 1 - torch.erf(x),
    _ATEN.unfold.default: _unfold,
    torch.ops.prims.where.default: _where,  # what torch makes of `where` with a number
}
