"""Reading by index (iOS15/16/17.scatter_gather). Negative indices count from the end (iOS 15 and 16; undefined since 17)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import tensor


def positive(indices: Any, size: int) -> Tensor:
    """int64 indices with negative ones counted from the end."""
    value = tensor(indices).long()
    return torch.where(value < 0, value + size, value)


@mil_op("gather", exact=True)
def gather(x: Any, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of `x` along `axis`: shape x[:axis] + indices[batch_dims:] + x[axis + 1:]."""
    source = tensor(x)
    place, batch = int(axis) % source.ndim, int(batch_dims)
    index = positive(indices, source.shape[place])
    if batch == 0:
        taken = source.index_select(place, index.reshape(-1))
        return taken.reshape(*source.shape[:place], *index.shape, *source.shape[place + 1 :])
    lead = source.shape[:batch]
    flat_index = index.reshape(*lead, -1)
    middle, rest = source.shape[batch:place], source.shape[place + 1 :]
    shaped = flat_index.reshape(*lead, *[1] * len(middle), -1, *[1] * len(rest))
    taken = torch.gather(source, place, shaped.expand(*lead, *middle, flat_index.shape[-1], *rest))
    return taken.reshape(*lead, *middle, *index.shape[batch:], *rest)


@mil_op("gather_along_axis", exact=True)
def gather_along_axis(x: Tensor, indices: Any, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """Like torch.gather: one index per output element along `axis`."""
    return torch.gather(x, int(axis), positive(indices, x.shape[int(axis)]))


@mil_op("gather_nd", exact=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """The last dimension of `indices` holds coordinates into the dimensions of `x` after the batch dimensions."""
    batch, depth = int(batch_dims), indices.shape[-1]
    lead = x.shape[:batch]
    coordinates: list[Tensor] = []
    for i, size in enumerate(lead):
        shape = [1] * (indices.ndim - 1)
        shape[i] = -1
        coordinates.append(torch.arange(size).reshape(shape))
    coordinates += [positive(indices[..., i], x.shape[batch + i]) for i in range(depth)]
    return x[tuple(coordinates)]


@mil_op("non_zero", exact=True)
def non_zero(x: Any) -> Tensor:
    """The indices of non-zero elements, one row each."""
    return torch.nonzero(tensor(x))
