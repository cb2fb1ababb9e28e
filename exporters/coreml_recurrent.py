"""LSTMs with integer weights in Core ML: the converter puts gates in another order, which it can do with constant floats alone."""

from __future__ import annotations

import copy
from typing import Any

from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, new_constant, op_name
from edgepress.compress.quantize.unpacked import SMALLEST_WEIGHT
from edgepress.exporters.coreml_import import coremltools

_LSTM = "lstm"


def with_float_weights(module: GraphModule) -> GraphModule:
    """The module with the float weights that the stored integers of its LSTMs stand for; itself where it has none."""
    if not any(_stored(node) for node in module.graph.nodes):
        return module
    module = copy.deepcopy(module)
    for layer in list(module.graph.nodes):
        for weight in _stored(layer):
            integers, *grid = weight.args
            held = (constant(module, part) if isinstance(part, Node) else part for part in (integers, *grid))
            with module.graph.inserting_before(layer):
                made = new_constant(module, f"{weight.name}_floats", weight.target(*held), weight)
            weight.replace_all_uses_with(made)
            module.graph.erase_node(weight)
    module.graph.lint()
    module.recompile()
    return module


def store_weights(model: Any) -> Any:
    """Store the weights of a converted model's LSTMs in int8, one symmetric scale per row: the integers they stood for."""
    optimize = coremltools().optimize.coreml
    linear = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=SMALLEST_WEIGHT - 1
    )
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_type_configs={_LSTM: linear}))


def _stored(layer: Node) -> list[Node]:
    """The nodes that unpack the weights of an LSTM."""
    if op_name(layer) != _LSTM:
        return []
    return [item for item in layer.all_input_nodes if op_name(item) == "dequantize_per_channel"]
