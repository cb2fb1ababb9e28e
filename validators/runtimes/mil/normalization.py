"""Normalisation (iOS15.normalization, iOS17.normalization): statistics and division in float32, one rounding at the end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints, per_channel


@mil_op("batch_norm")
def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel (dimension 1)."""
    factor = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        factor = factor * gamma
    result = (x - per_channel(mean, x.ndim, 1)) * per_channel(factor, x.ndim, 1)
    return result if beta is None else result + per_channel(beta, x.ndim, 1)


@mil_op("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Normalise each sample and channel over its spatial dimensions, then scale and shift per channel."""
    return _scaled(_standardized(x, tuple(range(2, x.ndim)), epsilon), gamma, beta, 1)


@mil_op("layer_norm")
def layer_norm(x: Tensor, axes: Any = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Normalise over `axes` (all when absent); gamma and beta have the shape of `x` along these axes."""
    dims = sorted(axis % x.ndim for axis in (ints(axes) if axes is not None else range(x.ndim)))
    shape = [x.shape[i] if i in dims else 1 for i in range(x.ndim)]
    result = _standardized(x, tuple(dims), epsilon)
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


@mil_op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """X / sqrt(sum of squares over the last three dimensions + epsilon)."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@mil_op("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """X / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta."""
    return F.local_response_norm(x, int(size), alpha, beta, k)


def _standardized(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _scaled(x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int) -> Tensor:
    if gamma is not None:
        x = x * per_channel(gamma, x.ndim, axis)
    return x if beta is None else x + per_channel(beta, x.ndim, axis)
