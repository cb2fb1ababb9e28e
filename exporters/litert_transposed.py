"""Transposed convolutions as LiteRT has kernels for: in one group, and of whole results.

It has one for results without margins taken off, or with as many as give `stride` times the extent. So margins are taken off afterwards,
and groups become weights of 0 between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import attribute

aten = torch.ops.aten
_TRANSPOSED = frozenset([aten.conv_transpose1d.default, aten.conv_transpose2d.input])
#: Arguments where a call leaves them away: bias, stride, padding, output padding, groups, dilation.
_DEFAULTS: tuple[Any, ...] = (None, [1], [0], [0], 1, [1])


def lower_transposed(module: GraphModule) -> GraphModule:
    """Rewrite the transposed convolutions of a graph.

    Args:
        module: their weights are attributes, or quantized and dequantized ones, with a scale per input or output channel or one for
            all; with `val` of fixed shapes; changed in place.

    Returns:
        The same module, which computes the same values, with as many times the multiply-accumulates as there were groups.
    """
    for node in list(module.graph.nodes):
        if node.target in _TRANSPOSED:
            given: tuple[Any, ...] = node.args
            x, weight, bias, stride, padding, extra, groups, dilation = given + _DEFAULTS[len(given) - 2 :]
            rank = node.meta["val"].dim() - 2
            stride, padding, extra, dilation = (_each(value, rank) for value in (stride, padding, extra, dilation))
            dense = _dense(module, weight, groups) if groups > 1 else None
            node.args = (x, weight if dense is None else dense, bias, stride, padding, extra, groups if dense is None else 1, dilation)
            if max(stride) > 1 and any(padding):
                _crop(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _each(value: int | list[int], rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else [*value, *value[:1] * (rank - len(value))]


def _crop(module: GraphModule, node: Node) -> None:
    """Let the convolution give all of its result, and take the margins off behind the ReLU and the rounding that follow it."""
    x, weight, bias, stride, padding, extra, groups, dilation = node.args
    wanted = node.meta["val"]
    more = [max(e - p, 0) for e, p in zip(extra, padding, strict=True)]
    sizes = zip(x.meta["val"].shape[2:], weight.meta["val"].shape[2:], stride, dilation, more, strict=True)
    node.args = (x, weight, bias, stride, [0] * len(padding), more, groups, dilation)
    node.meta["val"] = wanted.new_empty((*wanted.shape[:2], *((n - 1) * s + d * (k - 1) + 1 + e for n, k, s, d, e in sizes)))
    last, pair = node, list[Node]()
    if len(node.users) == 1 and next(iter(node.users)).target == aten.relu.default:
        last = next(iter(node.users))
        last.meta["val"] = last.meta["val"].new_empty(node.meta["val"].shape)
    while len(last.users) == 1 and "quantize_per_tensor" in str(next(iter(last.users)).target) and len(pair) < 2:
        last = next(iter(last.users))
        last.meta["val"] = last.meta["val"].new_empty(node.meta["val"].shape)
        pair.append(last)
    readers = list(last.users)
    result = last
    with module.graph.inserting_after(last):
        for dim, (begin, extent) in enumerate(zip(padding, wanted.shape[2:], strict=True), start=2):
            result = _after(module, result, aten.slice.Tensor, result, dim, begin, begin + extent)
            result.meta["val"] = result.args[0].meta["val"].narrow(dim, 0, extent)
        for each in pair if len(pair) == 2 else []:
            result = _after(module, result, each.target, result, *each.args[1:])
            result.meta["val"] = each.meta["val"].new_empty(wanted.shape)
    for reader in readers:
        reader.replace_input_with(last, result)


def _after(module: GraphModule, node: Node, target: Any, *arguments: Any) -> Node:
    with module.graph.inserting_after(node):
        return module.graph.call_function(target, arguments)


def _dense(module: GraphModule, node: Any, groups: int) -> Node | None:
    """What stands for a weight (in, out / groups, ...) made (in, out, ...), before the node; None where it is no constant."""
    if not isinstance(node, Node):
        return None
    if node.op == "get_attr":
        weight = attribute(module, str(node.target))
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        dense = weight.new_zeros(weight.shape[0], columns * groups, *weight.shape[2:])
        for group in range(groups):
            part = slice(group * rows, (group + 1) * rows)
            dense[part, group * columns : (group + 1) * columns] = weight[part]
        return _stored(module, node, dense)
    if "quantize" not in str(node.target):
        return None
    source = _dense(module, node.args[0], groups)
    if source is None:
        return None
    arguments = [source, *node.args[1:]]
    if "per_channel" in str(node.target) and arguments[3] == 1:
        arguments[1:3] = [_stored(module, each, attribute(module, str(each.target)).repeat(groups)) for each in node.args[1:3]]
    with module.graph.inserting_after(node):
        made = module.graph.call_function(node.target, tuple(arguments), node.kwargs)
    made.meta["val"] = source.meta["val"].to(node.meta["val"].dtype)
    return made


def _stored(module: GraphModule, like: Node, value: Tensor) -> Node:
    name = f"{str(like.target).replace('.', '_')}_dense"
    module.register_buffer(name, value.detach())
    with module.graph.inserting_after(like):
        node = module.graph.get_attr(name)
    node.meta["val"] = like.meta["val"].new_empty(value.shape)
    return node
