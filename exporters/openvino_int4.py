"""4-bit layers read from MatMulNBits, brought into the form that the CPU plugin's kernel takes."""

from __future__ import annotations

import math
from typing import Any

from edgepress.exporters.nibbles import pack, unpack


def trim_zero_points(model: Any) -> None:
    """Store zero points of an odd number of groups as they are, in place.

    In ONNX the rows of packed zero points end on whole bytes, and reading the file cuts the padding off with a Slice. Behind one the
    plugin takes zero points for floats, and computes the layer in float32 instead of with activations rounded to 8 bits.
    """
    import openvino
    from openvino import opset13

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Slice" or op.input_value(0).get_node().get_type_name() != "Convert":
            continue
        padded = op.input_value(0).get_node().input_value(0).get_node()
        if padded.get_type_name() != "Constant" or padded.get_element_type() != openvino.Type.u4:
            continue
        shape, whole = list(op.get_output_shape(0)), list(padded.get_output_shape(0))
        integers = unpack(padded.data.reshape(-1), math.prod(whole)).reshape(whole)[tuple(slice(size) for size in shape)]
        tensor = openvino.Tensor(openvino.Type.u4, openvino.Shape(shape))  # which owns its bytes: one made of an array would not
        tensor.data.reshape(-1)[:] = pack(integers.reshape(-1))
        exact = opset13.convert(openvino.op.Constant(tensor), op.get_output_element_type(0).get_type_name())
        op.output(0).replace(exact.output(0))
