"""Pooling over one to three spatial dimensions (iOS15.pool)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints
from edgepress.validators.runtimes.mil.windows import padded, windows

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _frame(x: Tensor, kernel_sizes: Any, strides: Any, padding: tuple[str, Any], ceil_mode: bool) -> tuple[Any, list[tuple[int, int]]]:
    """The window and its padding; under `ceil_mode` the end is padded until every started window fits.

    As in torch, a window must not start in the padding after the end.
    """
    view = windows(x.shape[2:], ints(kernel_sizes), strides, None, padding)
    pairs = []
    for i, (before, after) in enumerate(view.padding):
        size, kernel, stride = x.shape[2 + i] + before + after, view.kernel[i], view.strides[i]
        if ceil_mode:
            count = math.ceil((size - kernel) / stride) + 1
            if (count - 1) * stride >= x.shape[2 + i] + before:
                count -= 1
            after += max(0, (count - 1) * stride + kernel - size)
        pairs.append((before, after))
    return view, pairs


@mil_op("max_pool", exact=True)
def max_pool(
    x: Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The largest value of each window; padding never wins."""
    view, pairs = _frame(x, kernel_sizes, strides, (pad_type, pad), bool(ceil_mode))
    return _MAX[x.ndim - 2](padded(x, pairs, -math.inf), view.kernel, view.strides)


@mil_op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window. What `ceil_mode` adds at the end is never counted; padding is, unless excluded."""
    view, pairs = _frame(x, kernel_sizes, strides, (pad_type, pad), bool(ceil_mode))
    pool = _AVERAGE[x.ndim - 2]
    total = pool(padded(x, pairs), view.kernel, view.strides)
    counted = torch.ones((1, 1, *x.shape[2:]))
    if not exclude_padding_from_average:
        counted = padded(counted, view.padding, 1.0)
        pairs = [(0, full[1] - own[1]) for full, own in zip(pairs, view.padding, strict=True)]
    share = pool(padded(counted, pairs), view.kernel, view.strides)
    return total / share


@mil_op("l2_pool")
def l2_pool(x: Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: bool = False) -> Tensor:
    """The square root of the sum of squares of each window."""
    view, pairs = _frame(x, kernel_sizes, strides, (pad_type, pad), bool(ceil_mode))
    mean = _AVERAGE[x.ndim - 2](padded(x, pairs).square(), view.kernel, view.strides)
    return torch.sqrt(mean * math.prod(view.kernel))
