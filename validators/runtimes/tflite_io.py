"""Between the float arrays of edgepress and the stored types of a .tflite file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepress.targets.errors import ExecutionError


def stored(name: str, value: np.ndarray, dtype: Any, scale: float, zero_point: int) -> np.ndarray:
    """An input as the file takes it.

    Args:
        name: of the input, for messages.
        value: float32, or integers.
        dtype: the stored type.
        scale, zero_point: of an integer input that stands for floats; scale 0 where there is none.

    Raises:
        ExecutionError: an integer does not fit the stored type.
    """
    dtype = np.dtype(dtype)
    if value.dtype == dtype:
        return np.ascontiguousarray(value)
    if dtype.kind in "iu" and value.dtype.kind == "f":
        limits = np.iinfo(dtype)
        return np.clip(np.round(value / scale) + zero_point, limits.min, limits.max).astype(dtype)
    if dtype.kind in "iu" and value.size:
        limits = np.iinfo(dtype)
        if value.min() < limits.min or value.max() > limits.max:
            raise ExecutionError(
                f"input {name!r} has the value {value.max() if value.max() > limits.max else value.min()}", f"the file takes {dtype}"
            )
    return np.ascontiguousarray(value.astype(dtype))


def as_float(value: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """An output as float32 where it stands for floats (scale above 0, or float16), else as it is."""
    if value.dtype.kind in "iu" and scale:
        return ((value.astype(np.float32) - zero_point) * np.float32(scale)).astype(np.float32)
    return value.astype(np.float32) if value.dtype == np.float16 else value


def boundary(details: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, Any, float, int]]:
    """Name -> (tensor index, dtype, scale, zero point) from a signature runner's details."""
    table = {}
    for name, detail in details.items():
        scale, zero_point = detail["quantization"]
        table[name] = (int(detail["index"]), detail["dtype"], float(scale), int(zero_point))
    return table
