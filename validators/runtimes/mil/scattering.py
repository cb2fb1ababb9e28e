"""Writing by index (iOS15/17.scatter_gather): the mode says how an update meets the value that is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.gathering import positive
from edgepress.validators.runtimes.mil.registry import mil_op

_REDUCE = {"add": "sum", "sub": "sum", "mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


def _combine(data: Tensor, axis: int, index: Tensor, updates: Tensor, mode: str) -> Tensor:
    """One update per index element along `axis`; several updates of one place are all applied (`update`: any of them)."""
    updates = updates.to(data.dtype)
    if mode == "update":
        return data.scatter(axis, index, updates)
    if mode not in _REDUCE:
        raise ValueError(f"unknown scatter mode {mode!r}")
    if mode == "sub":
        updates = -updates
    if mode == "div":
        updates = 1.0 / updates
    return data.scatter_reduce(axis, index, updates, _REDUCE[mode])


@mil_op("scatter")
def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """Slices of `updates` along `axis` meet the slices of `data` at `indices` (1-D)."""
    place = int(axis) % data.ndim
    shape = [-1 if i == place else 1 for i in range(data.ndim)]
    index = positive(indices, data.shape[place]).reshape(-1).reshape(shape).expand(updates.shape)
    return _combine(data, place, index, updates, mode)


@mil_op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """One index per element of `updates` along `axis`."""
    place = int(axis) % data.ndim
    return _combine(data, place, positive(indices, data.shape[place]), updates, mode)


@mil_op("scatter_nd")
def scatter_nd(data: Tensor, indices: Tensor, updates: Any, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """The last dimension of `indices` holds coordinates into the leading dimensions of `data`."""
    depth = indices.shape[-1]
    lead, rest = data.shape[:depth], data.shape[depth:]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for i, size in enumerate(lead):
        flat = flat * size + positive(indices[..., i], size)
    rows = data.reshape(-1, *rest) if rest else data.reshape(-1)
    index = flat.reshape(-1, *[1] * len(rest))
    values = updates.reshape(-1, *rest) if rest else updates.reshape(-1)
    return _combine(rows, 0, index.expand(values.shape), values, mode).reshape(data.shape)
