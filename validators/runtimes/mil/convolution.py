"""Convolutions over one to three spatial dimensions (iOS15.conv, iOS17.conv). Accumulation in float32."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints
from edgepress.validators.runtimes.mil.windows import padded, windows

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@mil_op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    """x (n, C_in, *D), weight (C_out, C_in / groups, *K) -> (n, C_out, *D_out)."""
    view = windows(x.shape[2:], weight.shape[2:], strides, dilations, (pad_type, pad))
    symmetric = all(before == after for before, after in view.padding)
    inner = [before for before, _ in view.padding] if symmetric else 0
    outer = x if symmetric else padded(x, view.padding)
    return _CONV[x.ndim - 2](outer, weight, bias, view.strides, inner, view.dilations, int(groups))


@mil_op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    """x (n, C_in, *D), weight (C_in, C_out / groups, *K) -> (n, C_out, *D_out).

    The full result, D_out = (D - 1) * stride + (K - 1) * dilation + 1, is cropped by `pad`, then brought to
    `output_shape` where that is given (zeros after the end: no input reaches there, but the bias does).
    """
    rank = x.ndim - 2
    view = windows(x.shape[2:], weight.shape[2:], strides, dilations, ("valid", None))
    result = _CONV_TRANSPOSE[rank](x, weight, None, view.strides, 0, 0, int(groups), view.dilations)
    before = [0] * rank
    if pad_type == "custom" and pad is not None:
        before = ints(pad)[0::2]
        sizes = [result.shape[2 + i] - before[i] - ints(pad)[2 * i + 1] for i in range(rank)]
    elif pad_type in ("same", "same_lower"):
        sizes = [x.shape[2 + i] * view.strides[i] for i in range(rank)]
        excess = [max(0, result.shape[2 + i] - sizes[i]) for i in range(rank)]
        before = [e // 2 if pad_type == "same" else e - e // 2 for e in excess]
    else:
        sizes = list(result.shape[2:])
    if output_shape is not None:
        sizes = ints(output_shape)[-rank:]
    for i in range(rank):
        missing = max(0, before[i] + sizes[i] - result.shape[2 + i])
        if missing:
            result = padded(result, [(0, missing if j == i else 0) for j in range(rank)])
        result = result.narrow(2 + i, before[i], sizes[i])
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)
