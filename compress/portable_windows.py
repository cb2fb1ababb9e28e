"""Operators with windows and margins, written out for runtimes that have none of their settings: `portable.py` says which."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from edgepress.compress.rewriting import arguments_of, call, take_place

aten = torch.ops.aten
#: Pools that average, and may have windows larger than their input -> over how many dimensions.
AVERAGES = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}
#: Pools that may divide by another number than that of the elements in a window.
DIVIDED = (aten.avg_pool2d.default, aten.avg_pool3d.default)
#: Convolutions whose margins have a name -> those with numbers.
NAMED = {getattr(aten, f"conv{rank}d").padding: getattr(aten, f"conv{rank}d").default for rank in (1, 2, 3)}
#: Where a slice ends that goes to the end.
_END = 2**63 - 1


def covers_its_input(node: Node) -> bool:
    """Has a pool one window, which covers all of a known extent?"""
    windows, kept = windows_of(node), node.args[3] if len(node.args) > 3 else 0
    extents, results = (value.meta["val"].shape[-len(windows) :] for value in (node.args[0], node))
    divided = node.kwargs.get("divisor_override") if len(node.args) < 7 else node.args[6]
    if not all(isinstance(extent, int) for extent in extents) or any(result != 1 for result in results):
        return False
    padded = any(kept) if isinstance(kept, list | tuple) else bool(kept)
    return not padded and divided is None and all(a >= b for a, b in zip(windows, extents, strict=True))


def windows_of(node: Node) -> list[int]:
    """The extents of an average's window, one for each dimension."""
    size = node.args[1]
    return list(size) * (AVERAGES[node.target] // len(size)) if isinstance(size, list | tuple) else [size] * AVERAGES[node.target]


def divide(node: Node) -> None:
    """Put an average in place of a pool that divides by another number than its window has elements, times the ratio of the two.

    Its margins are written out: a window that stands over them counts fewer elements.
    """
    x, window, stride, padding, _, _, divisor = arguments_of(node)
    rank = DIVIDED.index(node.target) + 2
    sizes, counts = (value.meta["val"].shape[-rank:] for value in (x, node))
    if not divisor or not all(isinstance(size, int) for size in sizes):
        return
    window, stride, padding = ([*each, *each, *each][:rank] for each in (window, stride or window, padding))
    margins = [
        (before, max((count - 1) * step + extent - size - before, 0))
        for size, count, extent, step, before in zip(sizes, counts, window, stride, padding, strict=True)
    ]
    with node.graph.inserting_before(node):
        if any(map(any, margins)):
            x = call(node.graph, aten.constant_pad_nd.default, x, [margin for pair in reversed(margins) for margin in pair], 0.0)
        means = call(node.graph, node.target, x, window, stride)
        result = call(node.graph, aten.mul.Tensor, means, math.prod(window) / divisor)
    take_place(result, node)


def number(node: Node) -> None:
    """Give a convolution the numbers that its margins' name stands for; where one is odd, the zero that is over comes behind."""
    x, weight, bias, stride, name, dilation, groups = arguments_of(node)
    kernel = weight.meta["val"].shape[2:]
    spreads = [*dilation] * (len(kernel) // len(dilation))
    totals = [spread * (extent - 1) if name == "same" else 0 for extent, spread in zip(kernel, spreads, strict=True)]
    with node.graph.inserting_before(node):
        if any(total % 2 for total in totals):
            x = call(node.graph, aten.constant_pad_nd.default, x, [each for total in reversed(totals) for each in (0, total % 2)], 0.0)
        halves = [total // 2 for total in totals]
        result = call(node.graph, NAMED[node.target], x, weight, bias, stride, halves, dilation, groups)
    result.meta = {**node.meta, "val": result.meta["val"]}
    take_place(result, node)


def fold(node: Node) -> None:
    """Put in place of a col2im what it sums: windows are cut into pieces as large as the stride, which do not overlap.

    A window of 3 at stride 2 is filled up to 4 and has two pieces per dimension: their four maps, each a permutation of its columns, are
    moved to where they belong and added. Left as it is where windows are dilated, samples have no batch or an extent is not a number.
    """
    columns, size, window, dilation, padding, stride = node.args
    shape = columns.meta["val"].shape
    if len(shape) != 3 or not all(isinstance(extent, int) for extent in (*shape[1:], *size)) or any(d != 1 for d in dilation):
        return
    counts = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, window, stride, strict=True)]
    pieces = [-(-k // s) for k, s in zip(window, stride, strict=True)]
    with node.graph.inserting_before(node):
        cut = call(node.graph, aten.reshape.default, columns, [-1, *window, *counts])
        missing = [n * s - k for n, s, k in zip(pieces, stride, window, strict=True)]
        if any(missing):
            cut = call(node.graph, aten.constant_pad_nd.default, cut, [0, 0, 0, 0, 0, missing[1], 0, missing[0]])
        total: Node | None = None
        for row in range(pieces[0]):
            for column in range(pieces[1]):
                piece = cut
                for dim, at in ((1, row), (2, column)):
                    if pieces[dim - 1] > 1:
                        piece = call(node.graph, aten.slice.Tensor, piece, dim, at * stride[dim - 1], (at + 1) * stride[dim - 1])
                piece = call(node.graph, aten.permute.default, piece, [0, 3, 1, 4, 2])
                extents = [n * s for n, s in zip(counts, stride, strict=True)]
                piece = call(node.graph, aten.reshape.default, piece, [-1, *extents])
                for dim, at in ((1, row), (2, column)):
                    begin = at * stride[dim - 1] - padding[dim - 1]
                    piece = _moved(piece, dim, begin, extents[dim - 1], size[dim - 1])
                total = piece if total is None else call(node.graph, aten.add.Tensor, total, piece)
        channels = shape[1] // (window[0] * window[1])
        result = call(node.graph, aten.reshape.default, total, [-1, channels, *size])
    take_place(result, node)


def _moved(piece: Node, dim: int, begin: int, extent: int, size: int) -> Node:
    """Zeros of length `size` in a dimension of (n, height, width), with a map of length `extent` at `begin`, which may stand over."""
    first = max(-begin, 0)
    last = max(min(extent, size - begin), first)
    if (first, last) != (0, extent):
        piece = call(piece.graph, aten.slice.Tensor, piece, dim, first, last)
    before, after = max(begin, 0), size - begin - last
    if before or after:
        piece = call(piece.graph, aten.constant_pad_nd.default, piece, [before, after] if dim == 2 else [0, 0, before, after])
    return piece


def pad(node: Node) -> None:
    """Put slices in place of what margins take from a tensor: those that continue at its other side, and negative ones."""
    x, margins, *rest = node.args
    named = ("mode", "value") if node.target is aten.pad.default else ("value",)
    settings = {"mode": "constant", "value": None, **dict(zip(named, rest, strict=False)), **node.kwargs}
    mode, value = settings["mode"], settings["value"]
    pairs = list(enumerate(zip(margins[::2], margins[1::2], strict=True), start=1))  # the last dimension first
    if (
        not any(margins)
        or not all(isinstance(margin, int) for margin in margins)
        or (mode, min(margins) < 0) not in [("constant", True), ("circular", False)]
    ):
        return
    with node.graph.inserting_before(node):
        for dim, (before, after) in pairs:
            if mode == "circular":
                parts = ([(-before, _END)] if before else []) + [None] + ([(0, after)] if after else [])
                tensors = [x if part is None else call(node.graph, aten.slice.Tensor, x, -dim, *part) for part in parts]
                x = call(node.graph, aten.cat.default, tensors, -dim) if len(tensors) > 1 else x
            elif min(before, after) < 0:
                x = call(node.graph, aten.slice.Tensor, x, -dim, max(-before, 0), min(after, 0) or _END)
        if mode == "constant" and max(margins) > 0:
            x = call(node.graph, aten.constant_pad_nd.default, x, [max(margin, 0) for margin in margins], value or 0.0)
    take_place(x, node)
