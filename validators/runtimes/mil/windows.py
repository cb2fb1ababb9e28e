"""Padding of sliding windows, shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.tensors import ints


@dataclass(frozen=True)
class Windows:
    """A sliding window over the spatial dimensions: kernel, stride, dilation and (before, after) padding of each."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


def windows(sizes: Sequence[int], kernel: Sequence[int], strides: Any, dilations: Any, padding: tuple[str, Any]) -> Windows:
    """Resolve MIL's window arguments.

    Args:
        sizes: spatial sizes of the input.
        kernel: spatial sizes of the window.
        strides, dilations: as given, None for all ones.
        padding: (`pad_type`, `pad`). `same` puts the odd element after, `same_lower` before (iOS15.pool, iOS16.conv).
    """
    count = len(kernel)
    stride = ints(strides) if strides is not None else [1] * count
    dilation = ints(dilations) if dilations is not None else [1] * count
    kind, custom = padding
    if kind == "valid":
        pairs = [(0, 0)] * count
    elif kind == "custom":
        flat = ints(custom) if custom is not None else [0] * 2 * count
        pairs = [(flat[2 * i], flat[2 * i + 1]) for i in range(count)]
    elif kind in ("same", "same_lower"):
        pairs = []
        for i in range(count):
            covered = (-(-sizes[i] // stride[i]) - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1
            total = max(0, covered - sizes[i])
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if kind == "same" else (more, less))
    else:
        raise ValueError(f"unknown pad_type {kind!r}")
    return Windows(tuple(kernel), tuple(stride), tuple(dilation), tuple(pairs))


def padded(x: Tensor, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last `len(pairs)` dimensions by (before, after) elements each, with a constant."""
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x
