from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from tests.validators.runtimes.mil.one_op import check, normal, positive, run


@pytest.mark.parametrize(("dtype", "low", "high", "zero"), [("int8", -128, 127, 7), ("uint8", 0, 255, 130)])
def test_quantize_and_dequantize_per_tensor(dtype: str, low: int, high: int, zero: int) -> None:
    x, scale = normal(4, 20), np.float32(0.013)
    point = np.dtype(dtype).type(zero)
    expected = torch.clamp(torch.round(torch.from_numpy(x) / scale) + zero, low, high)

    def build(v: Any) -> Any:
        q = mb.quantize(input=v, scale=scale, zero_point=point, output_dtype=dtype)
        return q, mb.dequantize(input=q, scale=scale, zero_point=point)

    check(build, [expected, (expected - zero) * scale], x)
    assert (expected == low).any() or (expected == high).any()  # the range does saturate


def test_quantize_along_an_axis_without_zero_point() -> None:
    x, scale = normal(3, 4, 5), positive(4) / 30
    expected = torch.clamp(torch.round(torch.from_numpy(x) / torch.from_numpy(scale)[:, None]), -128, 127)
    check(lambda v: mb.quantize(input=v, scale=scale, output_dtype="int8", axis=1), expected, x)


def test_rounding_is_to_the_nearest_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype=np.float32)
    (got,) = run(lambda v: mb.quantize(input=v, scale=np.float32(1), output_dtype="int8"), x)
    assert got.tolist() == [0, 2, 2, 0, -2]


def codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


def test_affine_weights_of_ios16() -> None:
    x, data, scale = normal(2, 6), codes(4, 6), positive(4)
    weight = (data.astype("f4") - 3) * scale[:, None]
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_affine_dequantize(quantized_data=data, zero_point=np.int8(3), scale=scale, axis=0)),
        torch.from_numpy(x @ weight.T),
        x,
        opset="iOS16",
    )


@pytest.mark.parametrize("blocks", [(4, 1), (4, 3), (1, 1), (2, 2)])
def test_blockwise_weights_of_ios18(blocks: tuple[int, int]) -> None:
    x, data, scale = normal(2, 6), codes(4, 6), positive(*blocks)
    full = np.repeat(np.repeat(scale, 4 // blocks[0], 0), 6 // blocks[1], 1)
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale)),
        torch.from_numpy(x @ (data * full).T),
        x,
    )


def test_blockwise_weights_with_an_offset() -> None:
    x, data, scale, offset = normal(2, 6), codes(4, 6), positive(4, 1), codes(4, 1)
    weight = (data.astype("f4") - offset) * scale
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset)),
        torch.from_numpy(x @ weight.T),
        x,
    )


def test_palette_of_ios16_reads_packed_bits() -> None:
    x, lut = normal(2, 5), positive(16)
    index = np.random.default_rng(0).integers(0, 16, 20).astype(np.uint8)
    bits = ((index[:, None] >> np.arange(4)) & 1).reshape(-1)
    packed = np.packbits(bits, bitorder="little")
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array([4, 5], dtype=np.uint32))),
        torch.from_numpy(x @ lut[index].reshape(4, 5).T),
        x,
        opset="iOS16",
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_palette_of_ios18_has_a_table_per_block(groups: int) -> None:
    x, lut = normal(2, 5), positive(groups, 1, 16, 1)
    index = np.random.default_rng(0).integers(0, 16, (4, 5)).astype(np.uint8)
    rows = np.arange(4) // (4 // groups)
    weight = lut[rows[:, None], 0, index, 0]
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_lut_to_dense(indices=index.astype(types.np_uint4_dtype), lut=lut)),
        torch.from_numpy(x @ weight.T),
        x,
    )


def test_vector_palette_fills_along_its_axis() -> None:
    x, lut = normal(2, 3), positive(1, 1, 4, 2)
    index = np.random.default_rng(0).integers(0, 4, (2, 3)).astype(np.uint8)
    weight = lut[0, 0][index].transpose(0, 2, 1).reshape(4, 3)
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_lut_to_dense(indices=index.astype(types.np_uint2_dtype), lut=lut, vector_axis=0)),
        torch.from_numpy(x @ weight.T),
        x,
    )


def test_sparse_weights_of_ios16_and_ios18() -> None:
    x, mask = normal(2, 5), np.random.default_rng(0).integers(0, 2, (4, 5)).astype(np.uint8)
    values = normal(int(mask.sum()))
    weight = np.zeros((4, 5), dtype=np.float32)
    weight[mask != 0] = values
    expected = torch.from_numpy(x @ weight.T)
    packed, shape = np.packbits(mask.reshape(-1), bitorder="little"), np.array([4, 5], dtype=np.uint32)
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=packed, shape=shape)),
        expected,
        x,
        opset="iOS16",
    )
    check(
        lambda v: mb.linear(x=v, weight=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask.astype(types.np_uint1_dtype))),
        expected,
        x,
    )


def test_half_precision_constants_used_as_float32() -> None:
    x, weight = normal(2, 5), normal(4, 5).astype(np.float16)
    expected = torch.from_numpy(x @ weight.astype("f4").T)
    check(lambda v: mb.linear(x=v, weight=mb.constexpr_cast(source_val=weight, output_dtype="fp32")), expected, x, opset="iOS16")
