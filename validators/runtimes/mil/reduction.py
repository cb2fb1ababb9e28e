"""Reductions (iOS15.reduction, iOS17.reduction): over `axes`, all of them when none are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_OVER_AXES: dict[str, _Reduction] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keep) if x.is_floating_point() else x.float().mean(axes, keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}
_OVER_AXES_EXACT: dict[str, _Reduction] = {
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keep),
}


def _over_axes(reduction: _Reduction) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: Any = None, keep_dims: bool = False) -> Tensor:
        return reduction(x, tuple(ints(axes)) if axes is not None else tuple(range(x.ndim)), bool(keep_dims))

    return run


for _name, _reduction in _OVER_AXES.items():
    mil_op(_name)(_over_axes(_reduction))
for _name, _reduction in _OVER_AXES_EXACT.items():
    mil_op(_name, exact=True)(_over_axes(_reduction))


@mil_op("reduce_argmax", exact=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the largest value; the first one where several are equal."""
    return torch.argmax(x, int(axis), bool(keep_dims))


@mil_op("reduce_argmin", exact=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the smallest value; the first one where several are equal."""
    return torch.argmin(x, int(axis), bool(keep_dims))
