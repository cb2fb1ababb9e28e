"""Keeps float ops float that the converter would turn into integer ones.

Joins: the converter must not carry the scale of one input over to the others.

LiteRT's concatenation, maximum, minimum, select and padding with a number need one scale for all inputs and the result. Where one of
them stands in float next to an integer op, the converter takes that op's scale for all of them, and values outside its range are clipped
without a word (20 dB instead of 48 dB on a small network). An optimization barrier, which leaves no trace in the file, stops it.

Hard-swish, GELU and magnitudes: between integers they become int8 ops that XNNPACK does not take, and each of them cuts the delegated
graph in two.

Softmax: before a rounding it becomes an int8 op too, which loads with an output of the scale 1/256 alone.

Inputs that are returned: the converter would round them where a layer reads them rounded.

Averages: behind integers they round, also where a product follows (27 dB instead of 37 dB for windows that stand over).
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import kind_of

aten = torch.ops.aten
_WHERE = [getattr(aten.where, name) for name in ("self", "Scalar", "ScalarOther", "ScalarSelf")]
_JOINS = frozenset([aten.cat.default, aten.stack.default, aten.maximum.default, aten.minimum.default, *_WHERE])
#: Ops that XNNPACK computes in float alone.
_FLOAT_KERNELS = frozenset([aten.abs.default, aten.hardswish.default, aten.gelu.default])


def keep_float(module: GraphModule) -> GraphModule:
    """Put barriers around what has float kernels alone, joins whose inputs are not all dequantized or whose result is not quantized at
    once, and between inputs and outputs.

    Args:
        module: with `quantized_decomposed` nodes; changed in place.

    Returns:
        The same module, which computes the same values.
    """
    for node in list(module.graph.nodes):
        joins = node.target in _JOINS or _adds_value(node)
        rounded = _is_rounded(node)
        alone = node.target in _FLOAT_KERNELS or (kind_of(node) == "softmax" and rounded)
        alone |= node.target is aten.avg_pool2d.default and not rounded
        if alone or (joins and _is_float(node) and not _quantized(node)):
            for source in [item for item in node.all_input_nodes if _is_float(item)]:
                node.replace_input_with(source, barrier(module, source, node))
            users = list(node.users)
            if users:
                after = barrier(module, node, None)
                for user in users:
                    user.replace_input_with(node, after)
    output = module.graph.output_node()
    for source in [item for item in output.all_input_nodes if item.op == "placeholder" and _is_float(item)]:
        output.replace_input_with(source, barrier(module, source, output))
    module.graph.lint()
    module.recompile()
    return module


def _adds_value(node: Node) -> bool:
    """A pad with another number than 0, which every range has."""
    settings = node.args[2:] if node.target is aten.pad.default else ("constant", *node.args[2:])
    return node.target in (aten.pad.default, aten.constant_pad_nd.default) and settings[0:1] == ("constant",) and any(settings[1:])


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_rounded(node: Node) -> bool:
    """Some reader, behind ops that move values alone, rounds what the node computes."""
    return any(_quantizes(user) or (kind_of(user) == "shape" and _is_rounded(user)) for user in node.users)


def _quantizes(node: Node) -> bool:
    return str(node.target).startswith("quantized_decomposed.quantize")


def _quantized(node: Node) -> bool:
    """The rendering gave the join integers: all float inputs come from integers and the result goes to integers."""
    sources = [item for item in node.all_input_nodes if _is_float(item)]
    return all("dequantize" in str(item.target) for item in sources) and all(map(_quantizes, node.users))


def barrier(module: GraphModule, node: Node, before: Node | None) -> Node:
    """The same value behind a barrier, in the graph before `before`, or right after `node`.

    The value goes through twice: the converter mishandles a barrier of one.
    """
    from litert_torch.backend.optimization_barrier import optimization_barrier_op

    with module.graph.inserting_before(before) if before is not None else module.graph.inserting_after(node):
        pair = module.graph.call_function(optimization_barrier_op, ([node, node],))
    with module.graph.inserting_after(pair):
        value = module.graph.call_function(operator.getitem, (pair, 0))
    value.meta["val"] = node.meta["val"]
    return value
