"""Convolutions over one dimension as those over two that LiteRT has, and what lies between them in four dimensions too.

The converter writes each of them as a reshape, a transpose, a convolution and both back. It takes such pairs away between convolutions in
two dimensions, but not where they meet a residual sum or a concatenation of three.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import ACTIVATIONS, op_name
from edgepress.exporters.rounded_constants import derived

aten = torch.ops.aten
#: The dimension that is added, of one element.
_ADDED = 2
#: Ops that compute element by element what one tensor, or several of one shape, hold.
_ELEMENTWISE = ACTIVATIONS | {"add", "sub", "mul", "sigmoid", "tanh", "silu", "gelu", "hardswish", "leaky_relu", "elu"}
_ROUNDING = frozenset({"quantize_per_tensor", "dequantize_per_tensor"})
_PIECES = frozenset({"chunk", "split", "split_with_sizes"})


def convolve_in_two(module: GraphModule) -> GraphModule:
    """Rewrite the convolutions of a graph over one dimension, and what lies between two of them.

    Args:
        module: with `val` of fixed shapes; changed in place. Convolutions whose weight is computed at run time stay as they are.

    Returns:
        The same module, which computes the same values.
    """
    if not any(node.target is aten.conv1d.default for node in module.graph.nodes):
        return module
    for node in list(module.graph.nodes):
        if node.target is aten.conv1d.default:
            _widen(module, node)
        elif (wide := _wider(node)) is not None:
            node.replace_all_uses_with(wide)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _widen(module: GraphModule, node: Node) -> None:
    given: tuple[Any, ...] = node.args
    x, weight, bias, stride, padding, dilation, groups = given + (None, [1], [0], [1], 1)[len(given) - 2 :]
    with module.graph.inserting_before(node):
        kernel = derived(module, weight, "wide", partial(torch.unsqueeze, dim=_ADDED))
        if kernel is None:
            return
        wide = _four(x)
        sizes = ([before, *value] for before, value in ((1, stride), (0, padding), (1, dilation)))
        found = module.graph.call_function(aten.conv2d.default, (wide, kernel, bias, *sizes, groups))
        found.meta["val"] = node.meta["val"].unsqueeze(_ADDED)
        node.replace_all_uses_with(_three(found))


def _four(node: Node) -> Node:
    """A tensor of three dimensions in four: that which it was squeezed from, where it was."""
    if _squeezed(node):
        source: Node = node.args[0]
        return source
    wide = node.graph.call_function(aten.unsqueeze.default, (node, _ADDED))
    wide.meta["val"] = node.meta["val"].unsqueeze(_ADDED)
    return wide


def _three(node: Node) -> Node:
    flat = node.graph.call_function(aten.squeeze.dim, (node, _ADDED))
    flat.meta["val"] = node.meta["val"].squeeze(_ADDED)
    return flat


def _squeezed(node: Any) -> bool:
    return isinstance(node, Node) and node.target is aten.squeeze.dim and node.args[1] == _ADDED and node.meta["val"].dim() == _ADDED + 1


def _wider(node: Node) -> Node | None:
    """The same of what its inputs were squeezed from, squeezed; None for an op that has to stay as it is."""
    name = op_name(node) if node.op == "call_function" else ""
    if name in _ELEMENTWISE | _ROUNDING:
        return _of_elements(node, name)
    if node.target is aten.cat.default and all(map(_squeezed, node.args[0])):
        return _moved(node, [item.args[0] for item in node.args[0]])
    if node.target is aten.slice.Tensor and _squeezed(node.args[0]):
        return _moved(node, node.args[0].args[0])
    if name in _PIECES and _squeezed(node.args[0]) and all(user.target is operator.getitem for user in node.users):
        _take_pieces(node)
    return None


def _of_elements(node: Node, name: str) -> Node | None:
    tensors = node.all_input_nodes[:1] if name in _ROUNDING else node.all_input_nodes
    shapes = {tuple(item.meta["val"].shape) for item in tensors if "val" in item.meta and isinstance(item.meta["val"], torch.Tensor)}
    if not tensors or not all(map(_squeezed, tensors)) or len(shapes) != 1:
        return None
    with node.graph.inserting_before(node):
        wide = node.graph.node_copy(node, lambda item: item.args[0] if item in tensors else item)
        wide.meta = {**node.meta, "val": node.meta["val"].unsqueeze(_ADDED)}
        return _three(wide)


def _moved(node: Node, source: Any) -> Node:
    """A concatenation or slice along a dimension, which is the last of four where it was the last of three."""
    dimension = node.args[1] if len(node.args) > 1 else 0
    dimension %= _ADDED + 1
    with node.graph.inserting_before(node):
        rest = (dimension + (dimension >= _ADDED), *node.args[2:])
        wide = node.graph.call_function(node.target, (source, *rest), node.kwargs)
        wide.meta = {**node.meta, "val": node.meta["val"].unsqueeze(_ADDED)}
        return _three(wide)


def _take_pieces(node: Node) -> None:
    """Pieces of channels, in place of the readers of such an op."""
    dimension = node.args[2] if len(node.args) > 2 else 0
    if dimension != 1:
        return
    with node.graph.inserting_before(node):
        wide = node.graph.call_function(node.target, (node.args[0].args[0], *node.args[1:]), node.kwargs)
        wide.meta = {**node.meta, "val": [piece.unsqueeze(_ADDED) for piece in node.meta["val"]]}
    for user in list(node.users):
        with node.graph.inserting_before(user):
            piece = node.graph.call_function(operator.getitem, (wide, user.args[1]))
            piece.meta = {**user.meta, "val": user.meta["val"].unsqueeze(_ADDED)}
            user.replace_all_uses_with(_three(piece))
