"""Operators that arrange the same values in other shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, Misfit, opaque, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule
from edgepress.compress.quantize.graph import op_name


def _sizes(flow: Flow, node: Node, name: str, dims: Sequence[Dim], first: int = 0) -> None:
    """The list argument `name` holds the sizes of `dims`, from its entry `first` on."""
    flow.change(
        node,
        lambda kept, call: {name: [*call[name][:first], *(kept.resized(s, d) for s, d in zip(call[name][first:], dims, strict=True))]},
    )


@rule("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten")
def reshape(flow: Flow, node: Node) -> Dims:
    """Factors move between dimensions; sizes that are written in the call are rewritten."""
    x = flow.of(node.args[0])
    result = tuple(flow.group(tuple(axis for dim in x for axis in dim), flow.shape(node)))
    if op_name(node) in ("view", "reshape", "_unsafe_view"):
        _sizes(flow, node, "shape" if op_name(node) == "reshape" else "size", result)
    elif op_name(node) == "unflatten":
        start = int(call_of(node)["dim"]) % len(x)
        _sizes(flow, node, "sizes", result[start : start + len(result) - len(x) + 1])
    return result


@rule(
    "permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "transpose_copy", "permute_copy", "adjoint"
)
def permute(flow: Flow, node: Node) -> Dims:
    """Dimensions change places; torch says where to, on a tensor whose sizes are their numbers."""
    x = flow.of(node.args[0])
    order = _permutation(node, len(x))
    return tuple(x[d] for d in order)


def _permutation(node: Node, rank: int) -> list[int]:
    probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
    return [int(size) - 2 for size in node.target(probe, *node.args[1:], **node.kwargs).shape]


@rule("unsqueeze")
def unsqueeze(flow: Flow, node: Node) -> Dims:
    """A dimension of size 1 comes in."""
    call = call_of(node)
    x = flow.of(call["self"])
    position = int(call["dim"]) % (len(x) + 1)
    return (*x[:position], (), *x[position:])


@rule("squeeze")
def squeeze(flow: Flow, node: Node) -> Dims:
    """Dimensions of size 1 go; which ones is written out, for others may come down to 1."""
    call = call_of(node)
    x = flow.of(call["self"])
    shape = flow.shape(call["self"])
    given = call.get("dim", list(range(len(x))))
    axes = [int(d) % len(x) for d in ([given] if isinstance(given, int) else given) if x]
    going = [d for d in axes if shape[d] == 1]
    flow.change(node, lambda kept, call: {"dim": going}, torch.ops.aten.squeeze.dims)
    return tuple(dim for d, dim in enumerate(x) if d not in going)


@rule("expand", "expand_as", "broadcast_to")
def expand(flow: Flow, node: Node) -> Dims:
    """A dimension of size 1 becomes a new one, whose indices are free: the same values stand at each of them."""
    call = call_of(node)
    x, shape = flow.of(call["self"]), flow.shape(node)
    if op_name(node) == "expand_as":
        return flow.broadcast([x, flow.of(call["other"])])
    padded = (*[()] * (len(shape) - len(x)), *x)
    result = tuple(dim or _repeated(flow, size) for dim, size in zip(padded, shape, strict=True))
    _sizes(flow, node, "size", result)
    return result


def _repeated(flow: Flow, size: int) -> Dim:
    """A new dimension of equal entries; one that depends on the batch is pinned."""
    return opaque(size) if flow.sizes.static(size) != size else flow.space.fresh(size)


@rule("repeat", "tile")
def repeat(flow: Flow, node: Node) -> Dims:
    """Copies side by side: the copies are a factor of their own, and free."""
    call = call_of(node)
    name = "repeats" if op_name(node) == "repeat" else "dims"
    counts = [flow.sizes(r) for r in call[name]]
    x = flow.of(call["self"])
    rank = max(len(x), len(counts))
    padded, times = (*[()] * (rank - len(x)), *x), [*[1] * (rank - len(counts)), *counts]
    copies = [_repeated(flow, t) for t in times]
    _sizes(flow, node, name, copies[rank - len(counts) :])
    return tuple((*copy, *dim) for copy, dim in zip(copies, padded, strict=True))


@rule("repeat_interleave")
def repeat_interleave(flow: Flow, node: Node) -> Dims:
    """Copies of each index beside it; the number of copies is a factor of its own, and free."""
    call = call_of(node)
    x = flow.of(call["self"])
    if not isinstance(call["repeats"], int) or call["dim"] is None:
        raise Misfit("repeats that are a tensor")
    axis = int(call["dim"]) % len(x)
    copies = flow.space.fresh(call["repeats"])
    flow.change(node, lambda kept, call: {"repeats": kept.size(copies)})
    return (*x[:axis], (*x[axis], *copies), *x[axis + 1 :])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, node: Node) -> Dims:
    """Channels (groups, n) become (n, groups)."""
    x, count = flow.of(node.args[0]), int(call_of(node)["groups"])
    groups, within = flow.group(x[1], (count, size_of(x[1]) // count))
    flow.change(node, lambda kept, call: {"groups": kept.size(groups)})
    return (x[0], (*within, *groups), *x[2:])


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: Node) -> Dims:
    """Channels (c, r, r) become c channels of r x r pixels: c can go, r stays."""
    x, factor = flow.of(node.args[0]), int(call_of(node)["upscale_factor"])
    channels, pixels = flow.group(x[-3], (size_of(x[-3]) // factor**2, factor**2))
    flow.pin(node, [pixels, *x[-2:]], "pixels are not removed")
    return (*x[:-3], channels, *(opaque(size) for size in flow.shape(node)[-2:]))


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: Node) -> Dims:
    """c channels of r x r pixels become channels (c, r, r)."""
    x, factor = flow.of(node.args[0]), int(call_of(node)["downscale_factor"])
    flow.pin(node, x[-2:], "pixels are not removed")
    return (*x[:-3], (*x[-3], *opaque(factor**2)), *(opaque(size) for size in flow.shape(node)[-2:]))


@rule("unfold", "im2col")
def unfold(flow: Flow, node: Node) -> Any:
    """Windows: im2col puts c channels of k positions side by side, `Tensor.unfold` adds a dimension of window positions."""
    call = call_of(node)
    x = flow.of(call["self"])
    if op_name(node) == "im2col":
        flow.pin(node, x[-2:], "it needs every position")
        return (*x[:-3], (*x[-3], *opaque(math.prod(call["kernel_size"]))), opaque(flow.shape(node)[-1]))
    axis = int(call["dimension"]) % len(x)
    flow.pin(node, [x[axis]], "windows need every position")
    shape = flow.shape(node)
    return (*x[:axis], opaque(shape[axis]), *x[axis + 1 :], opaque(shape[-1]))
