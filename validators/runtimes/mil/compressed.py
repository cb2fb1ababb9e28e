"""Integer activations and compressed constants (iOS17.quantization_ops, iOS16.constexpr_ops, iOS18.compression)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints, per_channel, tensor

_BOUNDS = {"int8": (-128, 127), "uint8": (0, 255)}


@mil_op("quantize", exact=True)
def quantize(input: Tensor, scale: Any, output_dtype: str, zero_point: Any = None, axis: int | None = None) -> Tensor:
    """clip(round(input / scale) + zero_point), ties to even; scale and zero point per tensor or along `axis`."""
    place = int(axis or 0)
    levels = torch.round(input / per_channel(scale, input.ndim, place))
    if zero_point is not None:
        levels = levels + per_channel(zero_point, input.ndim, place)
    return levels.clamp(*_BOUNDS[output_dtype])


@mil_op("dequantize", "constexpr_affine_dequantize")
def dequantize(input: Any = None, scale: Any = None, zero_point: Any = None, axis: int | None = None, quantized_data: Any = None) -> Tensor:
    """scale * (input - zero_point), per tensor or along `axis`; the constant form calls its input `quantized_data`."""
    data = tensor(input if quantized_data is None else quantized_data).to(torch.float32)
    place = int(axis or 0)
    if zero_point is not None:
        data = data - per_channel(zero_point, data.ndim, place)
    return data * per_channel(scale, data.ndim, place)


@mil_op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Any, offset: Any = None) -> Tensor:
    """scale * (data - offset); each entry of scale and offset holds for a block of data, equal blocks along every axis."""
    values = data.to(torch.float32)
    if offset is not None:
        values = values - _spread(tensor(offset), values.shape)
    return values * _spread(tensor(scale), values.shape)


def _spread(value: Tensor, shape: torch.Size) -> Tensor:
    """Repeat blocks until `value` has the wanted shape, or broadcasts to it."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=False)):
        if 1 < have < want:
            value = value.repeat_interleave(want // have, axis)
    return value


@mil_op("constexpr_cast", exact=True)
def constexpr_cast(source_val: Tensor, output_dtype: str = "fp32") -> Tensor:
    """A half-precision constant used as float32."""
    return source_val


@mil_op("constexpr_lut_to_dense", exact=True)
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Any = None, vector_axis: int | None = None) -> Tensor:
    """A palette: packed bits into one table of values (iOS 16, with `shape`), or one index per element into tables of
    vectors, a table per block of the indices (iOS 18)."""
    if shape is not None:
        sizes = ints(shape)
        return lut[_unpack(indices, int(math.log2(len(lut))), math.prod(sizes))].reshape(sizes)
    tables = lut
    for axis, size in enumerate(indices.shape):
        tables = tables.repeat_interleave(size // tables.shape[axis], axis)
    index = indices.long()[..., None, None].expand(*indices.shape, 1, lut.shape[-1])
    vectors = torch.gather(tables, -2, index).squeeze(-2)
    if lut.shape[-1] == 1:
        return vectors.squeeze(-1)
    place = int(vector_axis or 0) % indices.ndim
    return vectors.movedim(-1, place + 1).flatten(place, place + 1)


@mil_op("constexpr_sparse_to_dense", exact=True)
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Any = None) -> Tensor:
    """Values where the mask is set, zero elsewhere; the mask is packed bits (iOS 16, with `shape`) or one per element."""
    sizes = ints(shape) if shape is not None else list(mask.shape)
    flat = _unpack(mask, 1, math.prod(sizes)) if shape is not None else mask.reshape(-1)
    dense = torch.zeros(len(flat), dtype=nonzero_data.dtype)
    dense[flat != 0] = nonzero_data
    return dense.reshape(sizes)


def _unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """`count` integers of `bits` bits, packed from the least significant bit of the first byte on."""
    stream = ((data.long()[:, None] >> torch.arange(8)) & 1).reshape(-1)[: bits * count]
    return (stream.reshape(count, bits) << torch.arange(bits)).sum(1)
