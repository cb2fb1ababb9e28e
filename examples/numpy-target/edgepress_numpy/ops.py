"""The ops of the target, as NumPy functions with the signatures of their aten counterparts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray
OPS: dict[str, Callable[..., Any]] = {}


def op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function under its own name."""
    OPS[function.__name__.rstrip("_")] = function
    return function


@op
def conv2d(x: Array, w: Array, b: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Array:
    """Convolution as one matrix product per group over sliding windows; dilation 1."""
    (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::sh, ::sw]
    n, _, height, width = windows.shape[:4]
    grouped = windows.reshape(n, groups, -1, height, width, *w.shape[2:])
    kernels = w.reshape(groups, -1, *w.shape[1:])
    y = np.einsum("ngchwij,gocij->ngohw", grouped, kernels, optimize=True).reshape(n, -1, height, width)
    return y if b is None else y + b[:, None, None]


@op
def batch_norm(
    x: Array, g: Array, b: Array, mean: Array, var: Array, training: bool, momentum: float, eps: float, cudnn: bool = False
) -> Array:
    """Inference-mode batch normalisation over axis 1."""
    scale = g / np.sqrt(var + eps)
    return x * scale[:, None, None] + (b - mean * scale)[:, None, None]


@op
def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """`x @ w.T + b`."""
    return x @ w.T if b is None else x @ w.T + b


@op
def relu(x: Array) -> Array:
    """`max(x, 0)`."""
    return np.maximum(x, 0)


@op
def hardtanh(x: Array, low: float = -1, high: float = 1) -> Array:
    """Clip, as in ReLU6."""
    return np.clip(x, low, high)


@op
def add(x: Array, y: Any) -> Array:
    """Elementwise sum."""
    return x + y


@op
def mul(x: Array, y: Any) -> Array:
    """Elementwise product."""
    return x * y


@op
def mean(x: Array, axes: Sequence[int], keepdim: bool = False) -> Array:
    """Mean over axes."""
    return x.mean(tuple(axes), keepdims=keepdim)


@op
def adaptive_avg_pool2d(x: Array, size: Any) -> Array:
    """Global average pooling; size 1 alone."""
    if tuple(_pair(size)) != (1, 1):
        raise ValueError(f"adaptive_avg_pool2d to {size} is not implemented; 1x1 is")
    return x.mean((2, 3), keepdims=True)


@op
def max_pool2d(x: Array, kernel: Any, stride: Any = None, padding: Any = 0) -> Array:
    """Maximum over windows."""
    (sh, sw), (ph, pw) = _pair(stride or kernel), _pair(padding)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=-np.inf)
    return sliding_window_view(x, _pair(kernel), axis=(2, 3))[:, :, ::sh, ::sw].max((-2, -1))


@op
def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    """Everything from `start` on as one axis."""
    return x.reshape(*x.shape[:start], -1)


@op
def view(x: Array, shape: Sequence[int]) -> Array:
    """New shape; a symbolic batch became -1."""
    return x.reshape(shape)


@op
def reshape(x: Array, shape: Sequence[int]) -> Array:
    """New shape; a symbolic batch became -1."""
    return x.reshape(shape)


@op
def quantize_per_tensor(x: Array, scale: float, zero: int, low: int, high: int, dtype: str) -> Array:
    """`clip(round(x / scale) + zero)`; rounds half to even, as PyTorch does."""
    return np.clip(np.rint(x / np.float32(scale)) + zero, low, high).astype(dtype)


@op
def dequantize_per_tensor(x: Array, scale: float, zero: int, low: int, high: int, dtype: str) -> Array:
    """`(x - zero) * scale`."""
    return (x.astype(np.float32) - np.float32(zero)) * np.float32(scale)


@op
def dequantize_per_channel(x: Array, scales: Array, zeros: Array, axis: int, low: int, high: int, dtype: str) -> Array:
    """The same with a scale per slice of `axis`."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    return (x.astype(np.float32) - zeros.reshape(shape)) * scales.reshape(shape).astype(np.float32)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return (values[0], values[-1])
