"""PyTorch operators written out for litert-torch in operators that it has kernels for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._decomp import get_decompositions

from edgepress.exporters.decompositions import PLAIN

aten = torch.ops.aten
#: Rows of a margin that are written one by one.
_FEW = 4
#: Of as many largest values each is searched for by itself.
_MOST = 16
#: What torch decomposes into `where`, `maximum` or `minimum`.
_JOINED = [
    aten.celu.default,
    aten.hardshrink.default,
    aten.heaviside.default,
    aten.lerp.Scalar,
    aten.lerp.Tensor,
    aten.log_sigmoid_forward.default,
    aten.logaddexp.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.mish.default,
    aten.nan_to_num.default,
    aten.softplus.default,
    aten.softshrink.default,
    aten.threshold.default,
    aten.tril.default,
    aten.triu.default,
    aten.xlogy.Tensor,
]


def joins() -> dict[Any, Callable[..., Any]]:
    """Operators that become joins of several values (`litert_barriers`) -> what becomes of them."""
    return dict(get_decompositions(_JOINED))


def margins() -> dict[Any, Callable[..., Any]]:
    """Operators whose margins repeat rows -> rows joined one by one; `NotImplemented` where they are many."""
    ways = {"reflect": partial(_joined, True), "replicate": partial(_joined, False)}
    table = {getattr(aten, f"replication_pad{rank}d").default: ways["replicate"] for rank in (1, 2, 3)}

    def padded(x: torch.Tensor, padding: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
        planes = mode == "replicate" or len(padding) == 4  # the converter's way with other mirrors is one over planes
        return ways[mode](x, padding) if mode in ways and planes else NotImplemented

    return {aten.pad.default: padded, aten.reflection_pad2d.default: ways["reflect"], **table}


def without_kernel() -> dict[Any, Callable[..., Any]]:
    """Operators that LiteRT has no kernel for, and the converter no rule -> what to compute in their place."""
    return {**get_decompositions([aten.upsample_bicubic2d.default, aten.upsample_trilinear3d.default]), **_OWN}


def _max_pool3d(
    x: torch.Tensor,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> tuple[torch.Tensor, None]:
    """`torch.nn.MaxPool3d` over planes, then over depth; without the second result, where the maxima stood."""
    (d, *plane), (ds, *strides), (dp, *paddings), (dd, *dilations) = (
        [*each, *each, *each][:3] for each in (window, stride or window, padding, dilation)
    )
    n, c, depth = x.shape[:3]
    x = torch.nn.functional.max_pool2d(x.flatten(1, 2), plane, strides, paddings, dilations, ceil)
    height, width = x.shape[-2:]
    x = x.reshape(n, c, depth, height * width)
    x = torch.nn.functional.max_pool2d(x, (d, 1), (ds, 1), (dp, 0), (dd, 1), ceil)
    return x.reshape(n, c, -1, height, width), None


def _of_floats(op: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Of integers, which have no kernel, the same of floats, exact below 2**24."""
    return lambda x, *rest, **named: NotImplemented if x.is_floating_point() else op(x.to(torch.float32), *rest, **named)


def _power(x: torch.Tensor, exponent: float) -> Any:
    """Of integers by multiplying; of floats of more than four dimensions, which the kernel does not take, in two."""
    if x.is_floating_point():
        return NotImplemented if x.dim() < 5 else torch.pow(x.flatten(1), exponent).reshape(x.shape)
    if not isinstance(exponent, int) or exponent < 0:
        return torch.pow(x.to(torch.float32), exponent)
    result = torch.ones_like(x)
    for _ in range(exponent):
        result = result * x
    return result


def _repeat(x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """One after the other: the converter does not repeat along other dimensions where it moves channels to the end."""
    x = x.reshape([1] * (len(counts) - x.dim()) + list(x.shape))
    for dim, count in enumerate(counts):
        x = torch.cat([x] * count, dim) if count > 1 else x
    return x


def _exclusive_or(x: torch.Tensor, y: torch.Tensor) -> Any:
    return torch.ne(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented


def _reflected(x: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """In two dimensions, for which there is a kernel: torch's own way has magnitudes of 64-bit integers."""
    wide = x[None, :, None] if x.dim() == 2 else x[:, :, None]
    return torch.nn.functional.pad(wide, (*padding, 0, 0), mode="reflect").reshape(*x.shape[:-1], -1)


def _joined(mirrored: bool, x: torch.Tensor, padding: Sequence[int]) -> Any:
    """Margins of which each row is a row of the tensor: those at its ends again, or those behind its ends.

    Joined one by one, where they are few: the kernel for mirrors takes 120 us for a margin of 1 around 64 channels of 16x16, this 6.
    """
    if max(padding) > _FEW or min(padding) < 0:
        return NotImplemented
    for dim, (before, behind) in enumerate(zip(padding[::2], padding[1::2], strict=True), start=1):
        last = x.shape[-dim] - 1
        ends = [*range(before, 0, -1)], [*range(last - 1, last - 1 - behind, -1)]
        first, final = ends if mirrored else ([0] * before, [last] * behind)
        rows = [[aten.slice(x, -dim, place, place + 1) for place in places] for places in (first, final)]
        x = torch.cat([*rows[0], x, *rows[1]], -dim) if before or behind else x
    return x


def _reflected_volume(x: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """Planes first, then depth: see `_reflected`."""
    *outer, depth, height, width = x.shape
    x = torch.nn.functional.pad(x.reshape(1, -1, height, width), padding[:4], mode="reflect")
    height, width = x.shape[-2:]
    x = torch.nn.functional.pad(x.reshape(1, -1, depth, height * width), (0, 0, *padding[4:]), mode="reflect")
    return x.reshape(*outer, -1, height, width)


def _topk(x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, _sorted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest, or smallest, values one after the other: each is the extreme of what is left.

    Raises:
        NotImplementedError: more than 16, or of integers.
    """
    if k > _MOST or not x.is_floating_point():
        raise NotImplementedError(
            f"topk of {k} values of {x.dtype}: LiteRT has no sort, and one by one at most {_MOST} floats are searched for"
        )
    left, places = (x if largest else -x), []
    for _ in range(k):
        places.append(left.argmax(dim, keepdim=True))
        shape = [1] * x.dim()
        shape[dim] = -1
        left = torch.where(torch.arange(x.shape[dim]).view(shape) == places[-1], -math.inf, left)
    index = torch.cat(places, dim)
    return x.gather(dim, index), index


#: What neither the converter nor torch's decompositions bring into ops with kernels.
_OWN: dict[Any, Callable[..., Any]] = {
    **PLAIN,
    aten._assert_async.msg: lambda *_: None,  # that class numbers are below their count, of `one_hot`
    aten.argmax.default: _of_floats(torch.argmax),
    aten.argmin.default: _of_floats(torch.argmin),
    aten.bitwise_xor.Tensor: _exclusive_or,
    aten.erfc.default: lambda x: 1 - torch.erf(x),
    aten.exp2.default: lambda x: torch.exp(x * math.log(2)),
    aten.max_pool3d_with_indices.default: _max_pool3d,
    aten.logical_xor.default: _exclusive_or,
    aten.pow.Scalar: lambda x, exponent: torch.pow(torch.full_like(exponent, x, dtype=torch.float32), exponent),
    aten.pow.Tensor_Scalar: _power,
    aten.reflection_pad1d.default: _reflected,
    aten.reflection_pad3d.default: _reflected_volume,
    aten.repeat.default: _repeat,
    aten.topk.default: _topk,
}
