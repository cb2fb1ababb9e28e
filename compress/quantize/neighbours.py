"""Sums, products and maxima of more than five dimensions, which Core ML has no tensors for, are those of fewer: neighbours are one.

Relative positions of rows and columns added to attention scores (MViTv2: Li et al. 2022, section 4.1) have six, and so has pooling
within windows (Hiera: Ryali et al. 2023, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import op_name, value_of
from edgepress.compress.quantize.windows import MOST

_OF_TWO = frozenset(["add", "sub", "mul", "div", "maximum", "minimum"])
_OVER_DIMENSIONS = frozenset(["amax", "amin", "mean", "sum"])
_SAME_ORDER = frozenset(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"])
aten = torch.ops.aten
#: For each dimension what it is in an operand; None where it may be either.
Roles = Sequence[bool | None]


def merge_neighbours(module: GraphModule) -> None:
    """Rewrite operators of two tensors, and those over given dimensions, whose tensors have more than five dimensions.

    Dimensions are merged that stand side by side and are treated alike: repeated or not, taken together or kept. The batch stays by itself.
    """
    for node in list(module.graph.nodes):
        if op_name(node) in _OF_TWO and _rank(node) > MOST:
            _merge_operands(module, node)
        elif op_name(node) in _OVER_DIMENSIONS and _rank(node.args[0]) > MOST and len(node.args) > 1:
            _merge_reduced(module, node)
    for node in module.graph.nodes:
        while op_name(node) in _SAME_ORDER and op_name(node.args[0]) in _SAME_ORDER and _rank(node.args[0]) > MOST:
            shape = [size if isinstance(size, int) else -1 for size in value_of(node).shape]
            if shape.count(-1) > 1:
                break
            node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0].args[0], shape), {}


def _merge_operands(module: GraphModule, node: Node) -> None:
    shape = value_of(node).shape
    operands = [arg for arg in node.args[:2] if isinstance(arg, Node)]
    shapes = [(1,) * (len(shape) - _rank(operand)) + tuple(value_of(operand).shape) for operand in operands]
    roles = [[None if whole == 1 else str(size) == str(whole) for size, whole in zip(sizes, shape, strict=True)] for sizes in shapes]
    groups = _groups(shape, roles)
    if len(groups) <= MOST:
        for operand, sizes in zip(operands, shapes, strict=True):
            node.replace_input_with(operand, _reshaped(module, node, operand, sizes, groups))
        _widened(module, node)


def _merge_reduced(module: GraphModule, node: Node) -> None:
    shape, rank = value_of(node.args[0]).shape, _rank(node.args[0])
    dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    taken = {dim % rank for dim in dims}
    groups = _groups(shape, [[dim in taken for dim in range(rank)]])
    if taken and 0 not in taken and len(groups) <= MOST:
        over = [place for place, group in enumerate(groups) if group[0] in taken]
        node.args = (_reshaped(module, node, node.args[0], shape, groups), over)
        _widened(module, node)


def _groups(shape: Sequence[int | torch.SymInt], roles: Sequence[Roles]) -> list[list[int]]:
    """Neighbours that have one role in each operand; every dimension by itself where another than the batch is open."""
    groups: list[list[int]] = [[0]]
    for dim in range(1, len(shape)):
        group = [*groups[-1], dim]
        alike = all(len({each[place] for place in group} - {None}) <= 1 for each in roles)
        if len(groups) > 1 and alike and all(isinstance(size, int) for size in shape[1:]):
            groups[-1] = group
        else:
            groups.append([dim])
    return groups


def _reshaped(module: GraphModule, node: Node, operand: Node, sizes: Sequence[int | torch.SymInt], groups: Sequence[Sequence[int]]) -> Node:
    first = sizes[0] if isinstance(sizes[0], int) else -1
    shape = [first, *(math.prod(int(sizes[dim]) for dim in group) for group in groups[1:])]
    with module.graph.inserting_before(node), enable_python_dispatcher():
        made = module.graph.call_function(aten.reshape.default, (operand, shape))
        made.meta |= operand.meta | {"val": value_of(operand).reshape(shape)}
    return made


def _widened(module: GraphModule, node: Node) -> None:
    """Let readers find the dimensions that they know; the node itself has fewer now."""
    value = value_of(node)
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    with module.graph.inserting_after(node), enable_python_dispatcher():
        again = module.graph.call_function(aten.reshape.default, (node, shape))
        again.meta |= node.meta | {"val": value}
        arguments = [value_of(arg) if isinstance(arg, Node) else arg for arg in node.args]
        node.meta["val"] = node.target(*arguments, **node.kwargs)
    node.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)


def _rank(node: object) -> int:
    value = value_of(node) if isinstance(node, Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else 0
