"""Two 4-bit integers to a byte, the first one in the low half: how ONNX, OpenVINO and LiteRT all store them."""

from __future__ import annotations

import numpy as np


def pack(integers: np.ndarray) -> np.ndarray:
    """Pack along the last dimension, which a zero fills up where it is odd.

    Args:
        integers: uint8 of 0 to 15, (..., n).

    Returns:
        uint8, (..., (n + 1) // 2).
    """
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros((*integers.shape[:-1], 1), np.uint8)], axis=-1)
    result: np.ndarray = integers[..., ::2] | (integers[..., 1::2] << 4)
    return result


def unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """The first `count` integers (uint8) of a flat array of bytes."""
    result: np.ndarray = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    return result
