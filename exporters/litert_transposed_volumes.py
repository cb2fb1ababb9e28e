"""Transposed convolutions over volumes, which LiteRT has no kernel for, as sums of those over planes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import attribute, set_attribute

aten = torch.ops.aten
#: Arguments where a call leaves them away: bias, stride, padding, output padding, groups, dilation.
_DEFAULTS: tuple[Any, ...] = (None, 1, 0, 0, 1, 1)


def convolve_planes(module: GraphModule) -> GraphModule:
    """Rewrite the transposed convolutions of a graph over three dimensions.

    Args:
        module: with `val` of fixed shapes; changed in place. Convolutions whose weight is computed at run time stay as they are.

    Returns:
        The same module, which computes the same values: each plane of a weight is applied to all planes of the input, and what it gives
        is moved to the depth where it belongs.
    """
    for node in [each for each in module.graph.nodes if each.target is aten.conv_transpose3d.input]:
        given: tuple[Any, ...] = node.args
        x, weight, bias, *rest = given + _DEFAULTS[len(given) - 2 :]
        (step, *stride), (margin, *padding), (_, *extra), (spread, *dilation) = (
            [value] * 3 if isinstance(value, int) else [*value, *value[:1] * (3 - len(value))] for value in (*rest[:3], rest[4])
        )
        with module.graph.inserting_before(node):
            planes = [_plane(module, weight, at) for at in range(weight.meta["val"].shape[2])]
            if None in planes:
                continue
            n, channels, depth, *plane = x.meta["val"].shape
            size = node.meta["val"].shape[2]
            flat = _call(aten.reshape.default, _call(aten.permute.default, x, [0, 2, 1, 3, 4]), [n * depth, channels, *plane])
            parts = []
            for at, kernel in enumerate(planes):
                part = _call(aten.conv_transpose2d.input, flat, kernel, None, stride, padding, extra, rest[3], dilation)
                shape = part.meta["val"].shape[1:]
                part = _call(aten.reshape.default, part, [n, depth, 1, shape.numel()])
                if step > 1:
                    part = _call(aten.constant_pad_nd.default, part, [0, 0, 0, step - 1])
                part = _call(aten.reshape.default, part, [n, depth * step, *shape])
                parts.append(_moved(part, at * spread - margin, size))
            total = reduce(lambda a, b: _call(aten.add.Tensor, a, b), parts)
            total = _call(aten.permute.default, total, [0, 2, 1, 3, 4])
            if bias is not None:
                total = _call(aten.add.Tensor, total, _call(aten.reshape.default, bias, [-1, 1, 1, 1]))
        node.replace_all_uses_with(total)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _moved(part: Node, begin: int, size: int) -> Node:
    """Planes (n, depth, ...) among `size` of zeros, the first of them at `begin`; what stands over is left away."""
    depth = part.meta["val"].shape[1]
    first, last = max(-begin, 0), min(depth, size - begin)
    if (first, last) != (0, depth):
        part = _call(aten.slice.Tensor, part, 1, first, last)
    before = max(begin, 0)
    after = size - before - (last - first)
    return _call(aten.constant_pad_nd.default, part, [0, 0, 0, 0, 0, 0, before, after]) if before or after else part


def _plane(module: GraphModule, weight: Node, at: int) -> Node | None:
    """Plane `at` of a constant (in, out, depth, height, width), rounded or not."""
    if weight.op == "get_attr":
        name = f"{str(weight.target).replace('.', '_')}_plane{at}"
        set_attribute(module, name, attribute(module, str(weight.target))[:, :, at].contiguous())
        plane: Node = module.graph.get_attr(name)
    elif "quantize_per_" in str(weight.target):
        integers = _plane(module, weight.args[0], at)
        if integers is None:
            return None
        plane = module.graph.node_copy(weight)
        plane.args = (integers, *weight.args[1:])
    else:
        return None
    plane.meta = {**weight.meta, "val": weight.meta["val"][:, :, at]}
    return plane


def _call(op: Callable[..., Any], *arguments: Any) -> Node:
    """A node with its value, where the graph of the first argument inserts."""
    node: Node = arguments[0].graph.call_function(op, arguments)
    node.meta["val"] = op(*torch.fx.node.map_arg(arguments, lambda each: each.meta["val"]))
    return node
