"""Weights of 4 and 2 bits in a finished ONNX file, which runtimes make 8-bit ones of when they load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepress.compress.quantize import int2
from edgepress.exporters.nibbles import pack
from edgepress.exporters.onnx_passes import replace_nodes, write
from edgepress.targets.rules import SMALLEST_NARROW

_LEVELS_NAME = "weights_of_bytes"


def pack_weights(path: Path) -> None:
    """Store int8 weights whose integers fit fewer bits in these, in place; the values are the same.

    Constants alone go into the nodes that unpack them: onnxruntime and OpenVINO run these once, when they load the file, and kernels that
    read 8-bit weights stay integer kernels. A DequantizeLinear of 4- or 2-bit integers would be run on its own, and the layer in float.

    4 bits are ONNX's INT4 and a Cast. Its INT2 comes with opset 25, which OpenVINO cannot read; a byte of four integers that a Gather
    looks up needs no new opset.
    """
    import onnx

    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            weight = tensors[node.input[0]]
            integers = onnx.numpy_helper.to_array(weight)
            if _in_2_bits(integers):
                nodes += _looked_up(model, weight.name, integers)
                node.input[0] = nodes[-1].output[0]
            elif integers.size >= SMALLEST_NARROW[4] and integers.min() >= -8 and integers.max() <= 7:
                nodes.append(_cast(model, weight.name, integers))
                node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    replace_nodes(model, nodes)
    write(model, path)


def _in_2_bits(integers: np.ndarray) -> bool:
    return integers.size >= SMALLEST_NARROW[2] and integers.size % 4 == 0 and bool(np.isin(integers, (-3, -1, 1, 3)).all())


def _cast(model: Any, name: str, integers: np.ndarray) -> Any:
    import onnx

    packed = pack((integers.reshape(-1) & 15).astype(np.uint8)).tobytes()
    model.graph.initializer.append(onnx.helper.make_tensor(f"{name}_int4", onnx.TensorProto.INT4, integers.shape, packed, raw=True))
    unpacked = f"{name}_int4_unpacked"
    return onnx.helper.make_node("Cast", [f"{name}_int4"], [unpacked], unpacked, to=onnx.TensorProto.INT8)


def _looked_up(model: Any, name: str, integers: np.ndarray) -> list[Any]:
    """The nodes that make int8 (the shape of `integers`) of bytes."""
    import onnx

    shape = "_".join(["shape", *map(str, integers.shape)])
    constants = {
        f"{name}_int2": int2.pack(torch.tensor(integers.reshape(-1))).numpy(),
        _LEVELS_NAME: int2.LEVELS.numpy(),
        shape: np.array(integers.shape, np.int64),
    }
    held = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, key) for key, array in constants.items() if key not in held)
    bytes_, four, whole = (f"{name}_{part}" for part in ("bytes", "four", "int2_unpacked"))
    return [
        onnx.helper.make_node("Cast", [f"{name}_int2"], [bytes_], to=onnx.TensorProto.INT32),
        onnx.helper.make_node("Gather", [_LEVELS_NAME, bytes_], [four]),
        onnx.helper.make_node("Reshape", [four, shape], [whole]),
    ]
