"""Ops that make tensors from sizes, order or counts (iOS15/16/17.tensor_operation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints, tensor


@mil_op("range_1d")
def range_1d(start: Any, end: Any, step: Any) -> Tensor:
    """start, start + step, ... before end."""
    first, last, stride = (value.item() if isinstance(value, Tensor) else value for value in (start, end, step))
    return torch.arange(first, last, stride)


@mil_op("fill", exact=True)
def fill(shape: Any, value: Any = 0.0) -> Tensor:
    """A tensor of one value."""
    return tensor(value).reshape(()).expand(ints(shape)).clone()


@mil_op("fill_like", exact=True)
def fill_like(ref_tensor: Tensor, value: Any = 0.0) -> Tensor:
    """A tensor of one value, in the shape of another."""
    return tensor(value).reshape(()).expand(ref_tensor.shape).clone()


@mil_op("one_hot", exact=True)
def one_hot(indices: Any, one_hot_vector_size: Any, axis: int = -1, on_value: Any = 1, off_value: Any = 0) -> Tensor:
    """`on_value` at each index of a new dimension, `off_value` elsewhere; an index outside gives no `on_value`."""
    index = tensor(indices)
    hot = index.unsqueeze(-1) == torch.arange(int(one_hot_vector_size))
    result = torch.where(hot, tensor(on_value), tensor(off_value))
    return result.movedim(-1, int(axis))


@mil_op("shape", exact=True)
def shape(x: Tensor) -> Tensor:
    """The sizes of a tensor, int32."""
    return torch.tensor(list(x.shape), dtype=torch.int32)


@mil_op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sums along `axis`, in float32; exclusive ones leave the element itself out, reverse ones run from the end."""
    place = int(axis)
    value = x.flip(place) if reverse else x
    total = value.cumsum(place)
    if exclusive:
        total = total - value
    return total.flip(place) if reverse else total


@mil_op("topk", exact=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    """The k largest (smallest when ascending) values along `axis`, sorted, and their indices; k = -1 takes all."""
    count = x.shape[int(axis)] if int(k) == -1 else int(k)
    values, indices = torch.topk(x, count, int(axis), largest=not ascending)
    return [values, indices] if return_indices else [values]


@mil_op("argsort", exact=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The indices that sort along `axis`, descending unless `ascending`; equal values keep their order."""
    return torch.argsort(x, stable=True, dim=int(axis), descending=not ascending)
