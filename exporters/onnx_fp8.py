"""Floats of 8 bits in ONNX: QuantizeLinear and DequantizeLinear with a zero point of FLOAT8E4M3FN, which TensorRT reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The first opset whose Q/DQ take floats of 8 bits.
FP8_OPSET = 19


def translations() -> dict[Any, Callable[..., Any]]:
    """For `torch.onnx.export`: how the op `edgepress::fp8` is written; empty while it is not registered."""
    import torch
    from onnx import TensorProto, helper
    from onnxscript import opset19

    if not hasattr(torch.ops.edgepress, "fp8"):
        return {}

    def fp8(x: Any, scale: float) -> Any:
        step = opset19.Constant(value=helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]))
        zero = opset19.Constant(value=helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]))
        return opset19.DequantizeLinear(opset19.QuantizeLinear(x, step, zero), step, zero)

    return {torch.ops.edgepress.fp8.default: fp8}


def store_weights(model: Any) -> None:
    """Store constants that are quantized to 8-bit floats as such, in place: a quarter of the bytes once what nothing reads is gone.

    Args:
        model: an `onnx_ir.Model`.
    """
    import onnx_ir as ir
    import torch

    from edgepress.compress.quantize.fp8 import LARGEST_FP8

    graph = model.graph
    for node in list(graph):
        if node.op_type != "QuantizeLinear" or [value.dtype for value in node.inputs[2:]] != [ir.DataType.FLOAT8E4M3FN]:
            continue
        source, scale = node.inputs[0], node.inputs[1]
        held, step = (ir.convenience.get_const_tensor(value) for value in (source, scale))
        if held is None or step is None:
            continue
        steps = torch.from_numpy(held.numpy().copy()) / float(step.numpy())
        tensor = ir.tensor(steps.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn), name=f"{source.name}_fp8")
        value = ir.Value(name=tensor.name, shape=ir.Shape(held.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.initializers[tensor.name] = value
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)
