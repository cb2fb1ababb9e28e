"""Transposed convolutions over volumes, which LiteRT has no kernel for, as sums of those over planes."""

from __future__ import annotations

from functools import partial, reduce

import torch
from torch.fx import Graph, GraphModule, Node

from edgepress.compress.rewriting import arguments_of, call
from edgepress.exporters.rounded_constants import derived

aten = torch.ops.aten


def convolve_planes(module: GraphModule) -> GraphModule:
    """Rewrite the transposed convolutions of a graph over three dimensions.

    Args:
        module: with `val` of fixed shapes; changed in place. Convolutions whose weight is computed at run time stay as they are.

    Returns:
        The same module, which computes the same values: each plane of a weight is applied to all planes of the input, and what it gives
        is moved to the depth where it belongs.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.conv_transpose3d.input):
        x, weight, bias, *rest = arguments_of(node)
        (step, *stride), (margin, *padding), (_, *extra), (spread, *dilation) = (
            [value] * 3 if isinstance(value, int) else [*value, *value[:1] * (3 - len(value))] for value in (*rest[:3], rest[4])
        )
        with graph.inserting_before(node):
            planes = [
                derived(module, weight, f"plane{at}", partial(torch.select, dim=2, index=at)) for at in range(weight.meta["val"].shape[2])
            ]
            if None in planes:
                continue
            n, channels, depth, *plane = x.meta["val"].shape
            size = node.meta["val"].shape[2]
            flat = call(graph, aten.reshape.default, call(graph, aten.permute.default, x, [0, 2, 1, 3, 4]), [n * depth, channels, *plane])
            parts = []
            for at, kernel in enumerate(planes):
                part = call(graph, aten.conv_transpose2d.input, flat, kernel, None, stride, padding, extra, rest[3], dilation)
                shape = part.meta["val"].shape[1:]
                part = call(graph, aten.reshape.default, part, [n, depth, 1, shape.numel()])
                if step > 1:
                    part = call(graph, aten.constant_pad_nd.default, part, [0, 0, 0, step - 1])
                part = call(graph, aten.reshape.default, part, [n, depth * step, *shape])
                parts.append(_moved(graph, part, at * spread - margin, size))
            total = reduce(lambda a, b: call(graph, aten.add.Tensor, a, b), parts)
            total = call(graph, aten.permute.default, total, [0, 2, 1, 3, 4])
            if bias is not None:
                total = call(graph, aten.add.Tensor, total, call(graph, aten.reshape.default, bias, [-1, 1, 1, 1]))
        node.replace_all_uses_with(total)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _moved(graph: Graph, part: Node, begin: int, size: int) -> Node:
    """Planes (n, depth, ...) among `size` of zeros, the first of them at `begin`; what stands over is left away."""
    depth = part.meta["val"].shape[1]
    first, last = max(-begin, 0), min(depth, size - begin)
    if (first, last) != (0, depth):
        part = call(graph, aten.slice.Tensor, part, 1, first, last)
    before = max(begin, 0)
    after = size - before - (last - first)
    return call(graph, aten.constant_pad_nd.default, part, [0, 0, 0, 0, 0, 0, before, after]) if before or after else part
