"""Operators that take pieces of tensors, or put pieces together."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.prune.axes import Axis, Dim, Dims, Misfit, opaque, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.kept import Kept
from edgepress.compress.prune.rules.registry import rule
from edgepress.compress.quantize.graph import op_name


@rule("cat", "concat", "concatenate")
def cat(flow: Flow, node: Node) -> Dims:
    """Labels one after the other along the axis; the other dimensions go together."""
    call = call_of(node)
    parts = [flow.of(tensor) for tensor in call["tensors"]]
    axis = int(call["dim"]) % len(parts[0])
    others = flow.broadcast([(*part[:axis], (), *part[axis + 1 :]) for part in parts])
    return (*others[:axis], flow.space.concatenate([part[axis] for part in parts]), *others[axis + 1 :])


@rule("stack")
def stack(flow: Flow, node: Node) -> Dims:
    """A new pinned dimension; the others go together."""
    call = call_of(node)
    merged = flow.broadcast([flow.of(tensor) for tensor in call["tensors"]])
    axis = int(call["dim"]) % (len(merged) + 1)
    return (*merged[:axis], opaque(len(call["tensors"])), *merged[axis:])


@rule("slice", "narrow")
def cut(flow: Flow, node: Node) -> Dims:
    """A range of indices; its bounds are rewritten. Every n-th index is taken only where nothing is removed."""
    call = call_of(node)
    x = flow.of(call.get("self", call.get("input")))
    axis = int(call["dim"]) % len(x)
    size, after = size_of(x[axis]), flow.shape(node)[axis]
    step = int(call.get("step", 1))
    if size == after and step == 1:
        whole = {"start": None, "end": None}
        if op_name(node) == "slice" and not flow.space.is_pinned(x[axis]):
            flow.change(node, lambda kept, call: whole)
        if op_name(node) == "slice" or flow.space.is_pinned(x[axis]):
            return x
    computed = any(isinstance(call.get(bound), Node) for bound in ("start", "end", "length"))
    if step != 1 or computed or flow.space.is_pinned(x[axis]):
        flow.pin(node, [x[axis]], "it takes every n-th index" if step != 1 else "the range is computed")
        return (*x[:axis], opaque(after), *x[axis + 1 :])
    start = _clipped(call["start"], size)
    before, piece = flow.space.part(x[axis], np.arange(start)), flow.space.take(x[axis], np.arange(start, start + after))
    if op_name(node) == "narrow":
        flow.change(node, lambda kept, call: {"start": kept.count(before), "length": kept.size(piece)})
    else:
        flow.change(node, lambda kept, call: {"start": kept.count(before), "end": kept.count(before) + kept.size(piece)})
    return (*x[:axis], piece, *x[axis + 1 :])


def _clipped(bound: int | None, size: int) -> int:
    bound = bound or 0
    return min(max(bound + size if bound < 0 else bound, 0), size)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "split_copy")
def split(flow: Flow, node: Node) -> list[Dims]:
    """Consecutive ranges; their sizes are written out."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    sizes = [flow.shape(node, i)[axis] for i in range(len(node.meta["val"]))]
    if flow.space.is_pinned(x[axis]) or sum(sizes) != size_of(x[axis]):
        flow.pin(node, [x[axis]], "the ranges are computed")
        return [(*x[:axis], opaque(size), *x[axis + 1 :]) for size in sizes]
    starts = [0, *accumulate(sizes)]
    pieces = [flow.space.take(x[axis], np.arange(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    flow.change(
        node,
        lambda kept, call: {"split_sizes": [kept.size(piece) for piece in pieces], "dim": axis},
        torch.ops.aten.split_with_sizes.default,
    )
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


@rule("getitem")
def getitem(flow: Flow, node: Node) -> Any:
    """One of several results."""
    assert node.target is operator.getitem
    results = flow.dims[node.args[0].name]
    return results[node.args[1]]


@rule("unbind")
def unbind(flow: Flow, node: Node) -> list[Dims]:
    """Every index of the axis becomes a tensor of its own: none can go."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    flow.pin(node, [x[axis]], "every index is read by itself")
    return [(*x[:axis], *x[axis + 1 :])] * size_of(x[axis])


@rule("select")
def select(flow: Flow, node: Node) -> Dims:
    """One index, which must stay; where it stands is rewritten."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    size = size_of(x[axis])
    if not flow.space.is_pinned(x[axis]):
        if not isinstance(call["index"], int):
            raise Misfit("the index is computed")
        index = call["index"] % size
        before = flow.space.part(x[axis], np.arange(index))
        flow.pin(node, [(flow.space.part(x[axis], np.arange(index, index + 1)),)], "this index is read by itself")
        flow.change(node, lambda kept, call: {"index": kept.count(before)})
    return (*x[:axis], *x[axis + 1 :])


@rule("index_select")
def index_select(flow: Flow, node: Node) -> Dims:
    """A constant list of indices is rewritten; indices that are computed pin the axis."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    return (*x[:axis], _picked(flow, node, x[axis], call["index"])[0], *x[axis + 1 :])


@rule("index")
def index(flow: Flow, node: Node) -> Dims:
    """Tensor indexing; with one constant list of indices the axis stays prunable."""
    call = call_of(node)
    x = flow.of(call["self"])
    given = [(axis, item) for axis, item in enumerate(call["indices"]) if item is not None]
    if len(given) == 1:
        axis, item = given[0]
        return (*x[:axis], *_picked(flow, node, x[axis], item), *x[axis + 1 :])
    raise Misfit("several index tensors")


def _picked(flow: Flow, node: Node, dim: Dim, item: Any) -> Dims:
    """The dimensions that stand for `dim` once `item` has picked its indices."""
    known = flow.constant(item)
    shape = flow.of(item)
    if known is None or len(shape) != 1 or known[1].dtype not in (torch.int64, torch.int32) or flow.space.is_pinned(dim):
        flow.pin(node, [dim], "the indices are computed")
        return shape
    name, values = known
    chosen = values.to("cpu", torch.int64).numpy() % size_of(dim)
    picked = flow.space.take(dim, chosen)
    merged = flow.space.unify(picked, shape[0])

    def renumber(kept: Kept, sliced: Tensor) -> Tensor:
        mask = kept.mask(dim)
        if mask is None:
            return sliced
        return torch.from_numpy((np.cumsum(mask) - 1)[sliced.cpu().numpy() % len(mask)]).to(sliced.device, sliced.dtype)

    flow.revalued[name] = renumber
    return (merged,)


@rule("flip")
def flip(flow: Flow, node: Node) -> Dims:
    """The order is reversed."""
    call = call_of(node)
    x = list(flow.of(call["self"]))
    for axis in (int(d) % len(x) for d in call["dims"]):
        if not flow.space.is_pinned(x[axis]):
            x[axis] = flow.space.take(x[axis], np.arange(size_of(x[axis]))[::-1])
    return tuple(x)


@rule("roll")
def roll(flow: Flow, node: Node) -> Dims:
    """Shifted indices come back at the other end: pinned."""
    call = call_of(node)
    x = flow.of(call["self"])
    axes = [int(d) % len(x) for d in call["dims"]] or range(len(x))
    flow.pin(node, [x[axis] for axis in axes], "it shifts by a fixed number of indices")
    return x


@rule("tril", "triu")
def triangle(flow: Flow, node: Node) -> Dims:
    """Rows and columns are compared by number."""
    x = flow.of(node.args[0])
    flow.pin(node, x[-2:], "it compares positions")
    return x


@rule("gather", "take_along_dim", "scatter", "scatter_add", "index_add", "index_copy", "index_put", "masked_scatter", "searchsorted")
def computed(flow: Flow, node: Node) -> Dims:
    """Indices that depend on data."""
    raise Misfit("the indices are computed")


@rule("embedding")
def embedding(flow: Flow, node: Node) -> Dims:
    """weight (vocabulary, features): the vocabulary stays."""
    call = call_of(node)
    weight = flow.of(call["weight"])
    flow.role(call["weight"], ["other", "out"])
    flow.pin(node, weight[:1], "indices are looked up in it")
    return (*flow.of(call["indices"]), weight[1])


@rule("pad", "constant_pad_nd")
def pad(flow: Flow, node: Node) -> Dims:
    """Constant padding adds free indices: the amounts become the numbers of those that are kept. Other modes pin what they pad."""
    call = call_of(node)
    x = list(flow.of(call["self"]))
    amounts = list(call["pad"])
    constant = call.get("mode", "constant") == "constant"
    zones: dict[int, tuple[Axis, int]] = {}
    for entry in range(0, len(amounts), 2):
        axis = len(x) - 1 - entry // 2
        before, after = (flow.sizes(amount) for amount in amounts[entry : entry + 2])
        if not before and not after:
            continue
        if flow.space.is_pinned(x[axis]) or not constant:
            flow.pin(node, [x[axis]], "its padding repeats other indices")
            x[axis] = opaque(flow.shape(node)[axis])
            continue
        size = size_of(x[axis])
        zones[entry] = _zone(flow, x[axis], before, np.arange(-before))
        zones[entry + 1] = _zone(flow, x[axis], after, np.arange(size + after, size))
        middle = flow.space.part(x[axis], np.arange(max(-before, 0), size - max(-after, 0)))
        added = [zone for zone, sign in (zones[entry], zones[entry + 1]) if sign > 0]
        x[axis] = flow.space.concatenate([(zone,) for zone in ([*added[:1], middle, *added[1:]] if before > 0 else [middle, *added])])
    if zones:
        flow.change(node, lambda kept, call: {"pad": _amounts(kept, call["pad"], zones)})
    return tuple(x)


def _zone(flow: Flow, dim: Dim, amount: int, lost: np.ndarray) -> tuple[Axis, int]:
    """(the indices that one entry of the argument adds to or cuts off the dimension, its sign)."""
    if amount > 0:
        return Axis(amount, flow.space.labels.fresh(amount)), 1
    return flow.space.part(dim, lost), -1


def _amounts(kept: Kept, old: Sequence[int], zones: dict[int, tuple[Axis, int]]) -> list[int]:
    return [zones[i][1] * kept.count(zones[i][0]) if i in zones else amount for i, amount in enumerate(old)]
