"""Matrix products of one sample whose left factor is transposed, which LiteRT's converter writes as layers of the wrong shape.

It takes the transpose into the product, and makes of a product of one sample a FULLY_CONNECTED, which cannot transpose what it reads: the
file does not load. Attention over images written with channels first, `q.transpose(1, 2) @ k`, is such a product.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import SAME_VALUES, op_name
from edgepress.exporters.litert_barriers import barrier

_PRODUCTS = frozenset({"matmul", "bmm"})
_TRANSPOSES = frozenset({"transpose", "permute", "swapaxes", "t", "numpy_T", "movedim"})


def keep_transposed(module: GraphModule) -> GraphModule:
    """Put a barrier behind what transposes the left factor of a product.

    Args:
        module: with `val` of fixed shapes; changed in place.

    Returns:
        The same module, which computes the same values.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and op_name(node) in _PRODUCTS and _is_transposed(node.args[0]):
            node.update_arg(0, barrier(module, node.args[0], node))
    module.graph.lint()
    module.recompile()
    return module


def _is_transposed(factor: Node) -> bool:
    """Are the last two dimensions of a tensor turned, by itself or by what it was reshaped from?"""
    value = factor.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() < 3 or value.shape[:-2].numel() != 1:
        return False
    while op_name(factor) in SAME_VALUES and op_name(factor) not in _TRANSPOSES:
        factor = factor.args[0]
    return op_name(factor) in _TRANSPOSES
