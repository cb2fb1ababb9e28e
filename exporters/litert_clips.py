"""Clips between integers, as the rounding that they are: XNNPACK takes none of them, only those that a layer computes before it rounds.

One that is left to the built-in kernels takes ten times as long as the pointwise layer before it, and cuts the delegated graph in two.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import ACTIVATIONS, op_name
from edgepress.compress.rewriting import arguments_of

_OPS = torch.ops.quantized_decomposed
#: A bound that rounding to the ends of a grid keeps, in steps.
_NEARLY = 0.5


def round_clips(module: GraphModule) -> GraphModule:
    """Take out clips of integers whose answer is rounded: to a grid that ends within their bounds, or to such a one first.

    Args:
        module: with `quantized_decomposed` nodes; changed in place. Clips whose bounds have no zero between them stay as they are.

    Returns:
        The same module, which computes the same values, or values rounded once more.
    """
    for node in [node for node in module.graph.nodes if node.op == "call_function" and op_name(node) in ACTIVATIONS]:
        source, rounded, (low, high) = node.args[0], list(node.users), _bounds(node)
        if source.target is not _OPS.dequantize_per_tensor.default or not low <= 0 <= high:
            continue
        if not rounded or any(user.target is not _OPS.quantize_per_tensor.default for user in rounded):
            continue
        for user in rounded:
            user.replace_input_with(node, source if _ends_within(user, low, high) else _clipped(module, user, source, low, high))
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return module


def _bounds(node: Node) -> tuple[float, float]:
    name, settings = op_name(node), [value for value in arguments_of(node)[1:] if not isinstance(value, bool)]
    if name in ("relu", "relu6"):
        return 0.0, 6.0 if name == "relu6" else math.inf
    low, high = {"clamp_min": [*settings, None], "clamp_max": [None, *settings]}.get(name, [*settings, None, None][:2])
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _ends(rounded: Node) -> tuple[float, float]:
    scale, point, lowest, highest = map(float, rounded.args[1:5])
    return (lowest - point) * scale, (highest - point) * scale


def _ends_within(rounded: Node, low: float, high: float) -> bool:
    (first, last), reach = _ends(rounded), _NEARLY * float(rounded.args[1])
    return first >= low - reach and last <= high + reach


def _clipped(module: GraphModule, rounded: Node, source: Node, low: float, high: float) -> Node:
    """What a QUANTIZE reads, on the grid of what the bounds leave of its own."""
    (first, last), (*_, lowest, highest, dtype) = _ends(rounded), rounded.args
    first, last = max(first, low), min(last, high)
    scale = (last - first) / (highest - lowest) or float(rounded.args[1])
    grid = (scale, round(lowest - first / scale), lowest, highest, dtype)
    with module.graph.inserting_before(rounded):
        integers = module.graph.call_function(_OPS.quantize_per_tensor.default, (source, *grid))
        floats = module.graph.call_function(_OPS.dequantize_per_tensor.default, (integers, *grid))
    integers.meta, floats.meta = dict(rounded.meta), dict(source.meta)
    return floats
