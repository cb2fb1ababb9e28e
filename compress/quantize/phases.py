"""Transposed convolutions as convolutions that give each of the places between two inputs as outputs of their own.

Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?" (arXiv:1609.07009). An output o = stride q + r - padding
reads the inputs q - j by the values r + stride j of the window: r is its phase, and all phases of q read the same inputs.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from torch.fx import Node

from edgepress.compress.quantize.graph import value_of
from edgepress.compress.rewriting import arguments_of

#: A convolution whose windows are filled up with more products than this share of the transposed one's is not worth it.
_MOST = 2


def fits(node: Node) -> bool:
    """Can a transposed convolution be written so, over one or two dimensions, with the sums of its neighbours in 16 bits as they were?"""
    *_, stride, padding, extra, groups, dilation = arguments_of(node)
    inputs, _, *window = value_of(node.args[1]).shape
    rank = len(window)
    if groups != 1 or inputs % 2 or rank > 2 or any(step != 1 for step in dilation):
        return False
    strides, margins, extras = ([*each] * (rank // len(each)) for each in (stride, padding, extra))
    covered = [covers(k, s) for k, s in zip(window, strides, strict=True)]
    reaches = all(k + e - p <= whole for k, e, p, whole in zip(window, extras, margins, covered, strict=True))
    return reaches and math.prod(covered) <= _MOST * math.prod(window)


def taps(window: int, stride: int) -> int:
    """How many inputs an output reads along one dimension."""
    return -(-window // stride)


def covers(window: int, stride: int) -> int:
    """Extent of the window filled up, so that every phase reads as many."""
    return stride * taps(window, stride)


def weight(values: np.ndarray, strides: list[int]) -> np.ndarray:
    """(inputs, outputs, *window) -> (phases of all dimensions, the last one fastest, times outputs; inputs; *taps)."""
    inputs, outputs, *window = values.shape
    counts = [taps(k, s) for k, s in zip(window, strides, strict=True)]
    whole = np.zeros((inputs, outputs, *(s * n for s, n in zip(strides, counts, strict=True))), values.dtype)
    whole[tuple(map(slice, values.shape))] = values
    every: tuple[Any, ...] = (slice(None), slice(None))
    places = [tuple(slice(r, None, s) for r, s in zip(phase, strides, strict=True)) for phase in product(*map(range, strides))]
    phases = [whole[every + place] for place in places]
    turned = [np.flip(part, tuple(range(2, part.ndim))).swapaxes(0, 1) for part in phases]
    return np.ascontiguousarray(np.concatenate(turned))
