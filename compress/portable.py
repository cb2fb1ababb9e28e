"""Rewrites of a traced program to what every runtime computes, with the same values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

aten = torch.ops.aten

#: Pools that average, and may have windows larger than their input -> over how many dimensions.
_AVERAGES = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}
#: Distances between at most so many rows are computed as differences.
_FEW_ROWS = 25
#: Pools that may divide by another number than that of the elements in a window.
_DIVIDED = (aten.avg_pool2d.default, aten.avg_pool3d.default)
#: From here on a softplus is what it is of, in floats.
_LINEAR = 20
#: Where a slice ends that goes to the end.
_END = 2**63 - 1
#: Second names of operators, with the same overloads and arguments -> the first.
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "subtract": "sub",
    "true_divide": "div",
}


def portable(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place to what runs elsewhere too, with the same values.

    Tracing writes a reshape as a view where the strides it saw allow one. Kernels choose strides of their own: that of attention with a
    mask gives others as soon as gradients are asked for. Such views become reshapes. An average over a window larger than its input, which
    `ceil_mode` allows and other frameworks refuse, becomes a mean; one that divides by a number of its own, a multiple of one that does
    not. A softplus that is linear from a threshold on is chosen between. Integers taken from a float (`1.0 - mask`) become floats first.
    Windows put side by side (`fold`), which only ONNX has an operator for, become permutations and, where windows overlap, sums; margins
    that continue at the other side, and negative ones, become slices. Bags of as many rows of a table each (`EmbeddingBag` of a matrix)
    become rows that are looked up, and their sum, mean or maximum; a bilinear form becomes a linear layer, a product and a sum; distances
    (`cdist`) become differences, or products of matrices as torch computes many of them. A tensor written in the code is detached when it
    is made and needs no more of it. Second names of operators become the first.
    """
    for node in list(program.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _first_name(node.target)
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target in _AVERAGES and _exceeds_its_input(node):
            axes = list(range(-len(_windows(node)), 0))
            node.target, node.args, node.kwargs = aten.mean.dim, (node.args[0], axes, True), {}
        elif node.target in _DIVIDED:
            _divide(node)
        elif node.target is aten.softplus.default:
            _bend(node)
        elif node.target is aten.detach_.default and node.args[0].target is aten.lift_fresh_copy.default:
            _take_place(node.args[0], node)
        elif node.target is aten.rsub.Scalar:
            _promote(node)
        elif node.target is aten.col2im.default:
            _fold(node)
        elif node.target in (aten.pad.default, aten.constant_pad_nd.default):
            _pad(node)
        elif node.target is aten.embedding_bag.padding_idx:
            _look_up(node)
        elif node.target is aten.bilinear.default:
            _multiply_twice(node)
        elif node.target in (aten.cdist.default, aten._cdist_forward.default):
            _measure_distances(node)
    program.graph_module.recompile()
    return program


def _promote(node: Node) -> None:
    """Give a node the floats that its integers become in it, which torch.onnx looks for among its second operands alone."""
    result = node.meta["val"].dtype
    if node.args[0].meta["val"].dtype != result:
        with node.graph.inserting_before(node):
            node.update_arg(0, _call(node.graph, aten.to.dtype, node.args[0], result))


def _call(graph: Graph, op: Callable[..., Any], *arguments: Any) -> Node:
    """A node with its value, where the graph inserts."""
    node = graph.call_function(op, arguments)
    with enable_python_dispatcher():  # kernels in C++ would make a number of a size that is open
        node.meta["val"] = op(*map_arg(arguments, lambda argument: argument.meta["val"]))
    return node


def _arguments(node: Node) -> list[Any]:
    """Those of an operator, in its order, with the defaults of what is not given."""
    given = {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=False)} | node.kwargs
    return [given.get(argument.name, argument.default_value) for argument in node.target._schema.arguments]


def _divide(node: Node) -> None:
    """Put an average in place of a pool that divides by another number than its window has elements, times the ratio of the two.

    Its margins are written out: a window that stands over them counts fewer elements.
    """
    x, window, stride, padding, _, _, divisor = _arguments(node)
    rank = _DIVIDED.index(node.target) + 2
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
            x = _call(node.graph, aten.constant_pad_nd.default, x, [margin for pair in reversed(margins) for margin in pair], 0.0)
        means = _call(node.graph, node.target, x, window, stride)
        result = _call(node.graph, aten.mul.Tensor, means, math.prod(window) / divisor)
    _take_place(result, node)


def _bend(node: Node) -> None:
    """Choose between a softplus and what it is of, where it is linear from a lower number on than torch leaves away."""
    x, beta, threshold = _arguments(node)
    if threshold >= _LINEAR or beta <= 0:
        return
    with node.graph.inserting_before(node):
        smooth = _call(node.graph, aten.softplus.default, x, beta)
        result = _call(node.graph, aten.where.self, _call(node.graph, aten.gt.Scalar, x, threshold / beta), x, smooth)
    _take_place(result, node)


def _fold(node: Node) -> None:
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
        cut = _call(node.graph, aten.reshape.default, columns, [-1, *window, *counts])
        missing = [n * s - k for n, s, k in zip(pieces, stride, window, strict=True)]
        if any(missing):
            cut = _call(node.graph, aten.constant_pad_nd.default, cut, [0, 0, 0, 0, 0, missing[1], 0, missing[0]])
        total: Node | None = None
        for row in range(pieces[0]):
            for column in range(pieces[1]):
                piece = cut
                for dim, at in ((1, row), (2, column)):
                    if pieces[dim - 1] > 1:
                        piece = _call(node.graph, aten.slice.Tensor, piece, dim, at * stride[dim - 1], (at + 1) * stride[dim - 1])
                piece = _call(node.graph, aten.permute.default, piece, [0, 3, 1, 4, 2])
                extents = [n * s for n, s in zip(counts, stride, strict=True)]
                piece = _call(node.graph, aten.reshape.default, piece, [-1, *extents])
                for dim, at in ((1, row), (2, column)):
                    begin = at * stride[dim - 1] - padding[dim - 1]
                    piece = _moved(piece, dim, begin, extents[dim - 1], size[dim - 1])
                total = piece if total is None else _call(node.graph, aten.add.Tensor, total, piece)
        channels = shape[1] // (window[0] * window[1])
        result = _call(node.graph, aten.reshape.default, total, [-1, channels, *size])
    _take_place(result, node)


def _pad(node: Node) -> None:
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
                tensors = [x if part is None else _call(node.graph, aten.slice.Tensor, x, -dim, *part) for part in parts]
                x = _call(node.graph, aten.cat.default, tensors, -dim) if len(tensors) > 1 else x
            elif min(before, after) < 0:
                x = _call(node.graph, aten.slice.Tensor, x, -dim, max(-before, 0), min(after, 0) or _END)
        if mode == "constant" and max(margins) > 0:
            x = _call(node.graph, aten.constant_pad_nd.default, x, [max(margin, 0) for margin in margins], value or 0.0)
    _take_place(x, node)


def _look_up(node: Node) -> None:
    """Put what `embedding_bag` computes in place of it: an embedding, weighted or without its padding rows, and a reduction.

    Left as it is where bags are of different lengths or more than their values is read, and where a maximum leaves out padding rows.
    """
    table, indices, offsets, _, mode, _, weights, last, padding = (*node.args, *[None] * 9)[:9]
    users = {user.args[1]: user for user in node.users if user.users}
    step = offsets.args[2] if offsets.target is aten.arange.start_step else None
    equal = isinstance(step, int) and statically_known_true(indices.meta["val"].shape[0] == offsets.meta["val"].shape[0] * step)
    if list(users) != [0] or not equal or last or (mode == 2 and padding is not None):
        return
    graph = node.graph
    with graph.inserting_before(node):
        rows = _call(graph, aten.reshape.default, indices, [-1, step])
        found = _call(graph, aten.embedding.default, table, rows)
        if weights is not None:
            found = _call(graph, aten.mul.Tensor, found, _call(graph, aten.reshape.default, weights, [-1, step, 1]))
        if padding is not None:
            kept = _call(graph, aten.to.dtype, _call(graph, aten.ne.Scalar, rows, padding), found.meta["val"].dtype)
            found = _call(graph, aten.mul.Tensor, found, _call(graph, aten.unsqueeze.default, kept, -1))
        if mode == 2:
            result = _call(graph, aten.amax.default, found, [1])
        elif mode == 1 and padding is None:
            result = _call(graph, aten.mean.dim, found, [1])
        else:
            result = _call(graph, aten.sum.dim_IntList, found, [1])
            if mode == 1:
                count = _call(graph, aten.clamp_min.default, _call(graph, aten.sum.dim_IntList, kept, [1], True), 1.0)
                result = _call(graph, aten.div.Tensor, result, count)
    _take_place(result, users[0])
    for each in [*node.users, node, offsets, *offsets.all_input_nodes, indices]:
        if not each.users and each.op == "call_function":
            graph.erase_node(each)


def _multiply_twice(node: Node) -> None:
    """Put y_o = sum_j (sum_i x_i W_oij) z_j + b_o in place of a bilinear form (`nn.Bilinear`), with its first sum as a linear layer."""
    x, z, weight, bias = (*node.args, None)[:4]
    outputs, first, second = weight.meta["val"].shape
    graph = node.graph
    with graph.inserting_before(node):
        rows = _call(graph, aten.reshape.default, _call(graph, aten.permute.default, weight, [0, 2, 1]), [outputs * second, first])
        forms = _call(graph, aten.unflatten.int, _call(graph, aten.linear.default, x, rows), -1, [outputs, second])
        result = _call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, forms, _call(graph, aten.unsqueeze.default, z, -2)), [-1])
        if bias is not None:
            result = _call(graph, aten.add.Tensor, result, bias)
    _take_place(result, node)


def _measure_distances(node: Node) -> None:
    """Put what `cdist` computes in place of it. Left as it is for other powers than 1, 2 and infinity."""
    x, y, power, mode = (*node.args, 2.0, None)[:4]
    (rows, width), others = x.meta["val"].shape[-2:], y.meta["val"].shape[-2]
    many = mode is None and any(not isinstance(count, int) or count > _FEW_ROWS for count in (rows, others))
    if power not in (1, 2, math.inf) or not isinstance(width, int):
        return
    graph = node.graph
    with graph.inserting_before(node):
        if power == 2 and (many or mode == 1):
            squares = [_call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, each, each), [-1], True) for each in (x, y)]
            products = _call(graph, aten.matmul.default, x, _call(graph, aten.transpose.int, y, -2, -1))
            total = _call(graph, aten.add.Tensor, squares[0], _call(graph, aten.transpose.int, squares[1], -2, -1))
            total = _call(graph, aten.sub.Tensor, total, _call(graph, aten.mul.Tensor, products, 2.0))
            result = _call(graph, aten.sqrt.default, _call(graph, aten.clamp_min.default, total, 0.0))
        else:
            apart = _call(graph, aten.sub.Tensor, _call(graph, aten.unsqueeze.default, x, -2), _call(graph, aten.unsqueeze.default, y, -3))
            if power == 2:
                total = _call(graph, aten.sum.dim_IntList, _call(graph, aten.mul.Tensor, apart, apart), [-1])
                result = _call(graph, aten.sqrt.default, total)
            elif power == 1:
                result = _call(graph, aten.sum.dim_IntList, _call(graph, aten.abs.default, apart), [-1])
            else:
                result = _call(graph, aten.amax.default, _call(graph, aten.abs.default, apart), [-1])
    _take_place(result, node)


def _take_place(result: Node, node: Node) -> None:
    """Put a new node where another was, under its name: the program's signature names its outputs."""
    name = node.name
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    result.name = name


def _moved(piece: Node, dim: int, begin: int, extent: int, size: int) -> Node:
    """Zeros of length `size` in a dimension of (n, height, width), with a map of length `extent` at `begin`, which may stand over."""
    first = max(-begin, 0)
    last = max(min(extent, size - begin), first)
    if (first, last) != (0, extent):
        piece = _call(piece.graph, aten.slice.Tensor, piece, dim, first, last)
    before, after = max(begin, 0), size - begin - last
    if before or after:
        piece = _call(piece.graph, aten.constant_pad_nd.default, piece, [before, after] if dim == 2 else [0, 0, before, after])
    return piece


def _first_name(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    name = op._opname.removesuffix("_")
    if op.namespace != "aten" or name not in _ALIASES:
        return op
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, op._opname.replace(name, _ALIASES[name])), op._overloadname)
    return found


def _windows(node: Node) -> list[int]:
    size = node.args[1]
    return list(size) * (_AVERAGES[node.target] // len(size)) if isinstance(size, list | tuple) else [size] * _AVERAGES[node.target]


def _exceeds_its_input(node: Node) -> bool:
    """Has a pool one window, which covers all of a known extent and more?"""
    windows, kept = _windows(node), node.args[3] if len(node.args) > 3 else 0
    extents, results = (value.meta["val"].shape[-len(windows) :] for value in (node.args[0], node))
    divided = node.kwargs.get("divisor_override") if len(node.args) < 7 else node.args[6]
    if not all(isinstance(extent, int) for extent in extents) or any(result != 1 for result in results):
        return False
    padded = any(kept) if isinstance(kept, list | tuple) else bool(kept)
    pairs = list(zip(windows, extents, strict=True))
    return not padded and divided is None and all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
