"""Weights of LSTMs, GRUs and plain recurrent layers in int8: runtimes without an integer kernel for them unpack them when they load a file.

Every row of a weight has one scale, as in linear layers: rows are outputs of a gate.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, new_constant, op_name, value_of

#: Why such a layer computes in float.
STORED = "the runtime has no integer kernel for it: its weights alone are stored in integers"
#: Ops over a whole sequence whose third argument is the list of weights and biases.
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
#: Weights with fewer elements stay float: they weigh little.
SMALLEST_WEIGHT = 2**10
_LIMIT = 127


def recurrent_layers(module: GraphModule) -> list[Node]:
    """The layers with a weight that `store_weights` would store in integers."""
    return [node for node in module.graph.nodes if op_name(node) in RECURRENT and _weights(module, node)]


def store_weights(module: GraphModule, layers: list[Node], fold: bool = True) -> None:
    """Store the weights of recurrent layers as int8 with one scale per row, symmetric, in place; biases stay float32.

    Args:
        module: a graph.
        layers: of `recurrent_layers`.
        fold: False leaves a quantize node between a float weight and its dequantize node.
    """
    ops, made = torch.ops.quantized_decomposed, dict[Node, Node]()
    for layer in layers:
        for weight in _weights(module, layer):
            if weight not in made:
                tensor = constant(module, weight)
                assert tensor is not None, "_weights() names constants alone"
                tensor = tensor.detach()
                scale = (tensor.abs().amax(dim=1) / _LIMIT).clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros
                integers = torch.round(tensor / scale[:, None]).clamp(-_LIMIT, _LIMIT)
                held = integers.to(torch.int8) if fold else integers * scale[:, None]
                parts = (("integers", held), ("scales", scale), ("zero_points", torch.zeros(len(scale), dtype=torch.int64)))
                with module.graph.inserting_before(layer):
                    stored, *grid = (new_constant(module, f"{weight.name}_{suffix}", part, weight) for suffix, part in parts)
                    grid += [0, -_LIMIT, _LIMIT, torch.int8]
                    if not fold:
                        stored = module.graph.call_function(ops.quantize_per_channel.default, (stored, *grid))
                    made[weight] = module.graph.call_function(ops.dequantize_per_channel.default, (stored, *grid))
                made[weight].meta["val"] = value_of(weight)
            layer.replace_input_with(weight, made[weight])
    for weight in made:
        if not weight.users:
            module.graph.erase_node(weight)
    module.graph.lint()
    module.recompile()


def _weights(module: GraphModule, layer: Node) -> list[Node]:
    """Its constant matrices that are worth it."""
    found = []
    for item in layer.args[2] if isinstance(layer.args[2], list | tuple) else ():
        tensor = constant(module, item)
        if tensor is not None and tensor.dim() == 2 and tensor.dtype == torch.float32 and tensor.numel() >= SMALLEST_WEIGHT:
            found.append(item)
    return found
