"""Pools that LiteRT has no kernel for: averages of windows that stand over, or of a divisor of their own, and maxima of dilated windows.

And averages of integers, which XNNPACK takes as depthwise convolutions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from edgepress.compress.quantize.graph import new_constant
from edgepress.compress.rewriting import arguments_of
from edgepress.exporters.litert_windows import LARGEST_WINDOW

aten = torch.ops.aten
_Sizes = int | Sequence[int]
#: Averages -> over how many dimensions.
_AVERAGES = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}
#: The integer of every weight of an average.
_STEPS = 127


def pools() -> dict[Any, Callable[..., Any]]:
    """Operators that pool -> what to compute in their place; `NotImplemented` where the converter finds a kernel."""
    table: dict[Any, Callable[..., Any]] = {}
    for rank, op in enumerate((aten.avg_pool1d, aten.avg_pool2d), start=1):
        table[op.default] = partial(_average, rank)
    for rank, op in enumerate((aten.max_pool1d, aten.max_pool2d, aten.max_pool3d), start=1):
        table[op.default] = partial(_largest, rank)
    return table


def _average(
    rank: int,
    x: torch.Tensor,
    window: _Sizes,
    stride: _Sizes = (),
    padding: _Sizes = 0,
    ceil: bool = False,
    include: bool = True,
    divisor: int | None = None,
) -> Any:
    """Averages of whole windows, times what each has too much of zeros that do not count."""
    window, stride, padding = (_each(value, rank) for value in (window, stride or window, padding))
    same = not ceil and all(s == 1 and 2 * p == k - 1 for k, s, p in zip(window, stride, padding, strict=True))
    if divisor is None and (include or same or not (ceil or any(padding))):
        return NotImplemented
    margins, factors = list[int](), list[torch.Tensor]()
    for extent, k, s, p in zip(x.shape[-rank:], window, stride, padding, strict=True):
        count = _count(extent, k, s, p, ceil)
        after = max((count - 1) * s + k - p - extent, 0)
        margins = [p, after, *margins]
        counted = p if include else 0
        first = torch.arange(count) * s - p
        inside = (first + k).clamp(max=extent + counted) - first.clamp(min=-counted)
        factors = [factor[:, None] for factor in factors]
        if divisor is None and (p > counted or after > counted):
            factors.append(k / inside.to(torch.float32))
    pool = F.avg_pool1d if rank == 1 else F.avg_pool2d
    pooled = pool(F.pad(x, margins) if any(margins) else x, window, stride)
    if divisor is not None:
        return pooled * (math.prod(window) / divisor)
    return pooled * reduce(torch.mul, factors) if factors else pooled


def convolve_averages(module: GraphModule) -> GraphModule:
    """Write averages of windows between integers as depthwise convolutions whose weights are all one number.

    The built-in kernel for averages of integers takes 60 us for 3x3 windows of 64 channels of 16x16, such a convolution 4.

    Args:
        module: with `val` of fixed shapes and `quantized_decomposed` nodes; changed in place. Averages of windows that are too large for
            XNNPACK's kernels for one channel at a time, and those that leave margins out of account, stay as they are.

    Returns:
        The same module, which computes the same values.
    """
    ops = torch.ops.quantized_decomposed
    for node in [node for node in module.graph.nodes if node.target in _AVERAGES]:
        rank = _AVERAGES[node.target]
        x, window, stride, padding, ceil, include, *divisor = arguments_of(node)
        window, stride, padding = (_each(value, rank) for value in (window, stride or window, padding))
        if x.target is not ops.dequantize_per_tensor.default or {user.target for user in node.users} != {ops.quantize_per_tensor.default}:
            continue
        if ceil or any(divisor) or (any(padding) and not include) or math.prod(window) > LARGEST_WINDOW:
            continue
        channels = x.meta["val"].shape[1]
        weight = torch.full((channels, 1, *window), 1 / math.prod(window))
        parts = (weight, torch.full((channels,), float(weight.max()) / _STEPS), torch.zeros(channels, dtype=torch.int64))
        with module.graph.inserting_before(node):
            names = (f"{node.name}_{part}" for part in ("share", "scale", "zero"))
            kernel, *grid = (new_constant(module, name, part, x) for name, part in zip(names, parts, strict=True))
            grid += [0, -_STEPS, _STEPS, torch.int8]
            for op in (ops.quantize_per_channel.default, ops.dequantize_per_channel.default):
                kernel = module.graph.call_function(op, (kernel, *grid))
                kernel.meta["val"] = weight
            convolution = (aten.conv1d.default, aten.conv2d.default)[rank - 1]
            found = module.graph.call_function(convolution, (x, kernel, None, stride, padding, [1] * rank, channels))
        found.meta = dict(node.meta)
        node.replace_all_uses_with(found)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return module


def _largest(
    rank: int,
    x: torch.Tensor,
    window: _Sizes,
    stride: _Sizes = (),
    padding: _Sizes = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> Any:
    """Of dilated windows, the largest of slices, along one dimension after the other."""
    dilation = _each(dilation, rank)
    if set(dilation) == {1}:
        return NotImplemented
    sizes = zip(_each(window, rank), _each(stride or window, rank), _each(padding, rank), dilation, strict=True)
    for dim, (k, s, p, d) in enumerate(sizes, start=x.dim() - rank):
        span = d * (k - 1) + 1
        last = (_count(x.shape[dim], span, s, p, ceil) - 1) * s
        after = max(last + span - p - x.shape[dim], 0)
        if p or after:
            x = F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [p, after], value=-math.inf)
        x = reduce(torch.maximum, [aten.slice(x, dim, at, at + last + 1, s) for at in range(0, span, d)])
    return x


def _each(value: _Sizes, rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else [*value, *[value[0]] * (rank - len(value))]


def _count(extent: int, window: int, stride: int, padding: int, ceil: bool) -> int:
    """How many windows there are; none that begins behind the margin in front of which the input ends."""
    rest = extent + 2 * padding - window
    if not ceil:
        return rest // stride + 1
    count = -(-rest // stride) + 1
    return count - ((count - 1) * stride >= extent + padding)
