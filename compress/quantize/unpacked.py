"""Weights that no integer kernel reads, in int8 all the same: runtimes unpack them when they load a file.

Those of recurrent layers, with one scale per row, which is an output of a gate; and factors of matrix products that are no linear layer,
a stack of matrices or one that stands on the left, with one scale per output feature, which all matrices of a stack share.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import attribute, constant, kind_of, new_constant, op_name, set_attribute, value_of

#: Why what reads such a weight computes in float.
STORED = "the runtime has no integer kernel for it: its weights alone are stored in integers"
#: Ops over a whole sequence whose third argument is the list of weights and biases.
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
#: Weights with fewer elements stay float: they weigh little.
SMALLEST_WEIGHT = 2**10
#: How the names of the stored integers end.
INTEGERS = "_stored_integers"
_LIMIT = 127


def readers(module: GraphModule) -> list[Node]:
    """The ops with a weight that `store_weights` would store in integers."""
    return [node for node in module.graph.nodes if _weights(module, node)]


def store_weights(module: GraphModule, names: Container[str], fold: bool = True) -> None:
    """Store the weights of some ops as symmetric int8, in place; biases stay float32.

    Args:
        module: a graph.
        names: of the ops, among `readers`.
        fold: False leaves a quantize node between a float weight and its dequantize node.
    """
    ops, made = torch.ops.quantized_decomposed, dict[tuple[Node, int], Node]()
    for node in [node for node in module.graph.nodes if node.name in names]:
        for weight, axis in _weights(module, node):
            if (weight, axis) not in made:
                tensor = constant(module, weight)
                assert tensor is not None, "_weights() names constants alone"
                tensor = tensor.detach()
                others = [dim for dim in range(tensor.dim()) if dim != axis]
                wide = (tensor.abs().amax(dim=others, keepdim=True) / _LIMIT).clamp_min(torch.finfo(torch.float32).tiny)  # zeros alone
                integers = torch.round(tensor / wide).clamp(-_LIMIT, _LIMIT)
                held, scale = integers.to(torch.int8) if fold else integers * wide, wide.flatten()
                parts = ((INTEGERS, held), ("_scales", scale), ("_zero_points", torch.zeros(len(scale), dtype=torch.int64)))
                with module.graph.inserting_before(node):
                    stored, *grid = (new_constant(module, f"{weight.name}{suffix}", part, weight) for suffix, part in parts)
                    grid += [axis, -_LIMIT, _LIMIT, torch.int8]
                    if not fold:
                        stored = module.graph.call_function(ops.quantize_per_channel.default, (stored, *grid))
                    made[weight, axis] = module.graph.call_function(ops.dequantize_per_channel.default, (stored, *grid))
                made[weight, axis].meta["val"] = value_of(weight)
            node.replace_input_with(weight, made[weight, axis])
    for weight, _ in made:
        if not weight.users:
            module.graph.erase_node(weight)
    module.graph.lint()
    module.recompile()


def mark_stored(module: GraphModule, names: Container[str]) -> None:
    """Give the integers of the weights of some layers names by which an exporter tells that no integer kernel reads them, in place.

    Args:
        module: converted, with weights that are integers or are rounded in it.
        names: of the layers.
    """
    for node in [node for node in module.graph.nodes if node.name in names]:
        source = node.args[1]
        while isinstance(source, Node) and source.op == "call_function":
            source = source.args[0]
        if isinstance(source, Node) and source.op == "get_attr" and not str(source.target).endswith(INTEGERS):
            name = f"{str(source.target).replace('.', '_')}{INTEGERS}"
            set_attribute(module, name, attribute(module, str(source.target)))
            source.target = name
    module.recompile()


def _weights(module: GraphModule, node: Node) -> list[tuple[Node, int]]:
    """Its constant weights that are worth it, and the dimension of each that has a scale for every index."""
    if op_name(node) in RECURRENT:
        given = node.args[2] if isinstance(node.args[2], list | tuple) else ()
        found = [(item, 0) for item in given if value_of(item).dim() == 2]
    elif kind_of(node) == "matmul" and value_of(node.args[1]).dim() > 1:
        left, right = (value_of(factor).dim() for factor in node.args[:2])
        found = [(node.args[0], left - 2)] if left > 1 else []
        found += [(node.args[1], right - 1)]
    else:
        return []
    return [(weight, axis) for weight, axis in found if _worth_it(constant(module, weight))]


def _worth_it(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.float32 and tensor.numel() >= SMALLEST_WEIGHT
