"""bfloat16 in ONNX: the file that TensorRT builds from, and one that computes the same where no kernel knows the type.

Which nodes stay in float32, and where casts stand, is what onnxruntime's converter to float16 knows; its numbers are not taken, because
float16 ends at 65,504.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.onnx_passes import convert_to_fp16, replace_nodes, write

#: The first opset whose convolutions and normalizations take bfloat16.
BF16_OPSET = 22

#: Ops that TensorRT-RTX 1.7 takes in float32 and float16 alone: its parser refuses them, or its builder transposed convolutions.
_WIDE = ("HardSwish", "Mish", "Celu", "ConvTranspose")

#: Beside the model: the same nodes in float32, what each answers rounded to bfloat16.
REPLAY = "replay.onnx"


def convert_to_bf16(path: Path) -> Path:
    """Store and compute in bfloat16 in place; inputs and outputs of the model stay float32.

    Returns:
        The file `replay.onnx` beside it, which ONNX Runtime runs on CPUs: weights of 16 bits, arithmetic in float32, every answer rounded
        to bfloat16, as a GPU stores it.
    """
    import onnx

    numbers = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in _constants(onnx.load(path).graph).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that float16 cuts large and small numbers off
        convert_to_fp16(path, _WIDE)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    narrow = {item.name for item in inferred.value_info if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    for name, tensor in _constants(model.graph).items():
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            tensor.CopyFrom(_bf16(tensor.name, numbers.get(name, onnx.numpy_helper.to_array(tensor))))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.FLOAT16:
                attribute.i = onnx.TensorProto.BFLOAT16
    write(model, path)
    replay = path.with_name(REPLAY)
    _compute_in_float32(model, narrow)
    write(model, replay)
    return replay


def _constants(graph: Any) -> Mapping[str, Any]:
    """Name -> tensor, of initializers and of what nodes hold."""
    held = {node.output[0]: attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")}
    return {tensor.name: tensor for tensor in graph.initializer} | held


def _bf16(name: str, numbers: np.ndarray) -> Any:
    """A tensor of bfloat16, rounded to the nearest, ties to even."""
    import onnx
    import torch

    bits = torch.tensor(numbers.astype(np.float32)).to(torch.bfloat16).view(torch.int16).numpy()
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, numbers.shape, bits.tobytes(), raw=True)


def _compute_in_float32(model: Any, narrow: set[str]) -> None:
    """Round what nodes answer instead, in place.

    Args:
        model: whose values in `narrow` are bfloat16.
        narrow: their names.
    """
    import onnx

    stored = {tensor.name: f"{tensor.name}_float" for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BFLOAT16}
    nodes = [onnx.helper.make_node("Cast", [name], [read], read, to=onnx.TensorProto.FLOAT) for name, read in stored.items()]
    for node in model.graph.node:
        node.input[:] = [stored.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.BFLOAT16:
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(attribute.t).astype(np.float32)))
            elif attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.BFLOAT16:
                attribute.i = onnx.TensorProto.FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in narrow:
                exact, rounded = f"{name}_exact", f"{name}_rounded"
                node.output[index] = exact
                nodes.append(onnx.helper.make_node("Cast", [exact], [rounded], rounded, to=onnx.TensorProto.BFLOAT16))
                nodes.append(onnx.helper.make_node("Cast", [rounded], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT))
    replace_nodes(model, nodes)
