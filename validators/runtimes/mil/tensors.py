"""How MIL values live in torch: types, rounding, and reading constants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: MIL type -> torch type a value of it is held in. fp16 is held in float32 (already rounded), so that ops compute in
#: float32; the unsigned types torch computes poorly with are held in the next wider signed one.
HELD = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float32,
    "bool": torch.bool,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
}


def hold(value: Any, declared: str, *, exact: bool = False) -> Tensor:
    """A computed value as its consumers see it: rounded to the declared MIL type.

    Args:
        value: what an op function returned.
        declared: MIL type of the op's output, e.g. `fp16`.
        exact: the value is known to be representable already.
    """
    result = tensor(value)
    if declared == "fp16" and not exact:
        return result.to(torch.float16).to(torch.float32)
    return result.to(HELD[declared])


def tensor(value: Any) -> Tensor:
    """A tensor, from a tensor or a Python scalar."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, bool):
        return torch.tensor(value)
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int32)
    return torch.as_tensor(np.asarray(value))


def constant(value: Any) -> Any:
    """A constant of the package: arrays as tensors (floats in float32), scalars as Python values, strings as `str`."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, list | tuple):
        return [constant(item) for item in value]
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return [str(item) for item in array.reshape(-1)] if array.ndim else str(array)
    if array.ndim == 0:
        return array.item()
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64 if array.dtype.itemsize > 2 else np.int32)
    elif array.dtype.metadata:  # coremltools' sub-byte integers: the width is metadata on int8 or uint8
        array = array.astype(array.dtype.str)
    return torch.from_numpy(np.ascontiguousarray(array))


def ints(value: Any) -> list[int]:
    """A list of Python integers from a 1-D tensor, a sequence or one integer."""
    if isinstance(value, Tensor):
        return [int(item) for item in value.reshape(-1).tolist()]
    if isinstance(value, Iterable):
        return [int(item) for item in value]
    return [int(value)]


def flags(value: Any, count: int) -> list[bool]:
    """A list of booleans; an absent mask is all False."""
    if value is None:
        return [False] * count
    return [bool(item) for item in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]


def per_channel(value: Any, rank: int, axis: int) -> Tensor:
    """A scalar or a vector along `axis`, shaped to broadcast against a tensor of `rank` dimensions."""
    result = tensor(value)
    if result.ndim == 0:
        return result
    if result.ndim == 1 and len(result) == 1:
        return result.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return result.reshape(shape)
