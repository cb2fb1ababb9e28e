"""Linear layers with 4-bit weights in a .tflite file: FULLY_CONNECTED, which rounds each row of activations to 8 bits while it runs.

A scale per block is stored beside the weight (blockwise quantization), a scale per row in its own quantization parameters. The
DEQUANTIZE kernel reads a blockwise weight wrongly without an error, so no file has one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepress.exporters.nibbles import pack
from edgepress.targets.errors import ExportError

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from edgepress.compress.quantize.int4_op import Int4Weight
    from edgepress.exporters.litert_flatbuffer import TfliteFile

_FULLY_CONNECTED, _FLOAT32, _FLOAT16, _INT4 = 9, 0, 1, 17
_BLOCKWISE = 2
_SMALLEST = np.finfo(np.float16).smallest_subnormal
#: First versions of FULLY_CONNECTED with a scale per row and float activations, and with a scale per block.
_ROWS_VERSION, _BLOCKS_VERSION = 12, 13


def with_float_weights(module: GraphModule) -> list[Int4Weight]:
    """Write every 4-bit layer as a linear layer of the floats its integers stand for, in place; returns the weights in order.

    What the layers read comes through a barrier: the converter would multiply a norm's scale into their columns, which then fit no grid.
    """
    from edgepress.compress.quantize.int4_op import constant_node, int4_layers
    from edgepress.compress.quantize.prepare import finish
    from edgepress.exporters.litert_barriers import barrier

    weights = []
    sources: dict[Node, Node] = {}
    for node, weight in list(int4_layers(module)):
        source = node.args[0]
        if source not in sources:
            sources[source] = barrier(module, source, node)
        with module.graph.inserting_before(node):
            floats = constant_node(module, node, f"{node.name}_floats", weight.dequantized())
            layer = module.graph.call_function(torch.ops.aten.linear.default, (sources[source], floats, node.args[4]))
        layer.meta = dict(node.meta)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        weights.append(weight)
    finish(module)
    return weights


def store_integers(file: TfliteFile, weights: Sequence[Int4Weight], target: str) -> None:
    """Replace the float weights of FULLY_CONNECTED ops by the 4-bit integers they came from, in place.

    Args:
        file: converted from a module that `with_float_weights` rewrote.
        weights: what that returned.
        target: for messages.

    Raises:
        ExportError: a layer is not in the file as a FULLY_CONNECTED with its own weight.
    """
    wanted = {floats.tobytes(): (weight, floats) for weight in weights for floats in (weight.dequantized().numpy(),)}
    found: set[bytes] = set()
    for operator in file.graph.operators:
        if int(file.model.operatorCodes[operator.opcodeIndex].builtinCode) != _FULLY_CONNECTED:
            continue
        tensor = file.graph.tensors[operator.inputs[1]]
        data = file.model.buffers[tensor.buffer].data
        if tensor.type == _FLOAT32 and data is not None:
            stored = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
            for key, (weight, floats) in wanted.items():
                factors = _factors(stored, floats)
                if factors is not None:
                    _store(file, tensor, weight, factors)
                    found.add(key)
                    break
        if tensor.type == _INT4:
            blocks = tensor.quantization.detailsType == _BLOCKWISE
            operator.opcodeIndex = file.code(_FULLY_CONNECTED, _BLOCKS_VERSION if blocks else _ROWS_VERSION)
    if len(found) < len(wanted):
        raise ExportError(
            f"target {target!r}: {len(wanted) - len(found)} of {len(wanted)} layers with 4-bit weights are no FULLY_CONNECTED in the file",
            "the converter wrote them as another op, which has no 4-bit kernel",
            "Ask for precision int8-weights.",
        )


def _factors(stored: np.ndarray, floats: np.ndarray) -> np.ndarray | None:
    """What the converter multiplied each row by (it folds a product with a constant, an attention's scale, into the layer before it).

    Returns:
        Positive factors (outputs,), None where `stored` is another weight.
    """
    if stored.shape != floats.shape or (len(floats) > 1 and _factors(stored[:1], floats[:1]) is None):
        return None
    rows, columns = np.arange(len(floats)), np.abs(floats).argmax(axis=1)
    largest = floats[rows, columns]
    factors = np.where(largest == 0, 1.0, stored[rows, columns] / np.where(largest == 0, 1.0, largest))
    same = bool((factors > 0).all()) and np.allclose(stored, floats * factors[:, None], rtol=1e-5, atol=0)
    return factors if same else None


def _store(file: TfliteFile, tensor: Any, weight: Int4Weight, factors: np.ndarray) -> None:
    from ai_edge_litert import schema_py_generated as schema

    integers = weight.integers.numpy().astype(np.int8) - 8
    scale = weight.scale.numpy() * factors[:, None].astype(np.float32)
    parameters = schema.QuantizationParametersT()
    if scale.shape[1] == 1:
        parameters.scale, parameters.zeroPoint = scale[:, 0].copy(), np.zeros(len(scale), np.int64)
        parameters.quantizedDimension = 0
    else:
        stored = np.maximum(scale.astype(np.float16), _SMALLEST)  # the type that the kernel wants; it refuses a scale of zero
        nearest = np.rint(integers.reshape(*scale.shape, -1) * (scale / stored)[..., None])
        integers = nearest.clip(-8, 7).astype(np.int8)
        details = schema.BlockwiseQuantizationT()
        details.scales = file.constant(bytes(tensor.name) + b"_scales", stored, _FLOAT16)
        details.zeroPoints, details.blockSize = -1, weight.group
        parameters.detailsType, parameters.details = _BLOCKWISE, details
    file.model.buffers[tensor.buffer].data = pack(integers.reshape(-1).view(np.uint8) & 15)
    tensor.type, tensor.quantization = _INT4, parameters
