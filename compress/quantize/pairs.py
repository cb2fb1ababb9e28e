"""A rendering as PyTorch computes it fastest, to the same bits: rounding to integers and back is done in place, and never leaves float."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import value_of

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
#: float32 holds every integer up to this.
_EXACT = 1 << 24


def with_pairs_in_place(module: GraphModule) -> GraphModule:
    """A copy in which each float32 tensor that is rounded, and read as float alone, is rounded by `rounded`; parameters are shared.

    Two thirds of what ResNet-20's rendering costs beside its convolutions go into tensors of integers that nobody keeps.
    """
    graph = copy.deepcopy(module.graph)
    for node in graph.find_nodes(op="call_function", target=_QUANTIZE):
        if not _pair(node):
            continue
        with graph.inserting_before(node):
            both = graph.call_function(rounded, node.args[:-1])
        for back in list(node.users):
            back.replace_all_uses_with(both)
            graph.erase_node(back)
        graph.erase_node(node)
    return GraphModule(module, graph)


def rounded(value: Tensor, scale: float, zero_point: int, lowest: int, highest: int) -> Tensor:
    """What `dequantize_per_tensor(quantize_per_tensor(value))` gives for float32 numbers: the same operations in order.

    Args:
        value: float32, of any shape.
        scale: of one step.
        zero_point: the integer of 0.0.
        lowest: smallest integer.
        highest: largest integer.
    """
    integers = torch.mul(value, 1.0 / scale).round_().add_(zero_point).clamp_(lowest, highest)  # adding 0 makes -0.0 a 0.0, as integers do
    return (integers.sub_(zero_point) if zero_point else integers).mul_(scale)


def _pair(node: Node) -> bool:
    """Is a float32 tensor rounded by numbers known here, to integers that float32 holds, and every reader reads it back by the same?"""
    value, *grid = node.args
    tensor = value_of(value) if isinstance(value, Node) else None
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype == torch.float32
        and not any(isinstance(number, Node) for number in grid)
        and -_EXACT <= grid[2] <= grid[3] <= _EXACT
        and all(reader.target is _DEQUANTIZE and list(reader.args[1:]) == grid and not reader.kwargs for reader in node.users)
    )
