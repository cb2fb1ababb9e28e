"""Activation functions (iOS15.activation, iOS17.activation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import per_channel

mil_op("relu", exact=True)(lambda x: F.relu(x))
mil_op("relu6", exact=True)(lambda x: torch.clamp(x, 0.0, 6.0))
mil_op("sigmoid")(lambda x: torch.sigmoid(x))
mil_op("silu")(lambda x: F.silu(x))
mil_op("softplus")(lambda x: F.softplus(x, threshold=50.0))
mil_op("softsign")(lambda x: F.softsign(x))


@mil_op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(beta, x) where x >= 0, else min(beta, alpha * x)."""
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


@mil_op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """X where x > 0, else alpha * (e^x - 1)."""
    return F.elu(x, alpha)


@mil_op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Exact (erf), tanh approximation, or sigmoid approximation x * sigmoid(1.702 x)."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@mil_op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """X where x >= 0, else alpha * x."""
    return torch.where(x >= 0, x, alpha * x)


@mil_op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    """Alpha * x + beta."""
    return alpha * x + beta


@mil_op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Leaky ReLU with one slope per channel (dimension 1)."""
    return torch.where(x > 0, x, per_channel(alpha, x.ndim, 1) * x)


@mil_op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@mil_op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(alpha * x + beta, 0), 1)."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@mil_op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha_i * log(1 + e^(beta_i * x_i)), one pair per channel (dimension 1)."""
    return per_channel(alpha, x.ndim, 1) * F.softplus(per_channel(beta, x.ndim, 1) * x, threshold=50.0)


@mil_op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along one axis, internally in float32."""
    return torch.softmax(x, int(axis))


@mil_op("thresholded_relu", exact=True)
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """X where x >= alpha, else 0."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))
