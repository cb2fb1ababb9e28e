"""Lookups, bilinear forms and distances in operators that every runtime has: `portable.py` says which."""

from __future__ import annotations

import math

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from edgepress.compress.rewriting import call, take_place

aten = torch.ops.aten
#: Distances between at most so many rows are computed as differences.
_FEW_ROWS = 25


def look_up(node: Node) -> None:
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
        rows = call(graph, aten.reshape.default, indices, [-1, step])
        found = call(graph, aten.embedding.default, table, rows)
        if weights is not None:
            found = call(graph, aten.mul.Tensor, found, call(graph, aten.reshape.default, weights, [-1, step, 1]))
        if padding is not None:
            kept = call(graph, aten.to.dtype, call(graph, aten.ne.Scalar, rows, padding), found.meta["val"].dtype)
            found = call(graph, aten.mul.Tensor, found, call(graph, aten.unsqueeze.default, kept, -1))
        if mode == 2:
            result = call(graph, aten.amax.default, found, [1])
        elif mode == 1 and padding is None:
            result = call(graph, aten.mean.dim, found, [1])
        else:
            result = call(graph, aten.sum.dim_IntList, found, [1])
            if mode == 1:
                count = call(graph, aten.clamp_min.default, call(graph, aten.sum.dim_IntList, kept, [1], True), 1.0)
                result = call(graph, aten.div.Tensor, result, count)
    take_place(result, users[0])
    for each in [*node.users, node, offsets, *offsets.all_input_nodes, indices]:
        if not each.users and each.op == "call_function":
            graph.erase_node(each)


def multiply_twice(node: Node) -> None:
    """Put y_o = sum_j (sum_i x_i W_oij) z_j + b_o in place of a bilinear form (`nn.Bilinear`), with its first sum as a linear layer."""
    x, z, weight, bias = (*node.args, None)[:4]
    outputs, first, second = weight.meta["val"].shape
    graph = node.graph
    with graph.inserting_before(node):
        rows = call(graph, aten.reshape.default, call(graph, aten.permute.default, weight, [0, 2, 1]), [outputs * second, first])
        forms = call(graph, aten.unflatten.int, call(graph, aten.linear.default, x, rows), -1, [outputs, second])
        result = call(graph, aten.sum.dim_IntList, call(graph, aten.mul.Tensor, forms, call(graph, aten.unsqueeze.default, z, -2)), [-1])
        if bias is not None:
            result = call(graph, aten.add.Tensor, result, bias)
    take_place(result, node)


def measure_distances(node: Node) -> None:
    """Put what `cdist` computes in place of it. Left as it is for other powers than 1, 2 and infinity."""
    x, y, power, mode = (*node.args, 2.0, None)[:4]
    (rows, width), others = x.meta["val"].shape[-2:], y.meta["val"].shape[-2]
    many = mode is None and any(not isinstance(count, int) or count > _FEW_ROWS for count in (rows, others))
    if power not in (1, 2, math.inf) or not isinstance(width, int):
        return
    graph = node.graph
    with graph.inserting_before(node):
        if power == 2 and (many or mode == 1):
            squares = [call(graph, aten.sum.dim_IntList, call(graph, aten.mul.Tensor, each, each), [-1], True) for each in (x, y)]
            products = call(graph, aten.matmul.default, x, call(graph, aten.transpose.int, y, -2, -1))
            total = call(graph, aten.add.Tensor, squares[0], call(graph, aten.transpose.int, squares[1], -2, -1))
            total = call(graph, aten.sub.Tensor, total, call(graph, aten.mul.Tensor, products, 2.0))
            result = call(graph, aten.sqrt.default, call(graph, aten.clamp_min.default, total, 0.0))
        else:
            apart = call(graph, aten.sub.Tensor, call(graph, aten.unsqueeze.default, x, -2), call(graph, aten.unsqueeze.default, y, -3))
            if power == 2:
                total = call(graph, aten.sum.dim_IntList, call(graph, aten.mul.Tensor, apart, apart), [-1])
                result = call(graph, aten.sqrt.default, total)
            elif power == 1:
                result = call(graph, aten.sum.dim_IntList, call(graph, aten.abs.default, apart), [-1])
            else:
                result = call(graph, aten.amax.default, call(graph, aten.abs.default, apart), [-1])
    take_place(result, node)
