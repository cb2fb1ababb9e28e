"""Changes of shape in a model read from ONNX, behind which the CPU plugin cannot move a dequantization, or not as they are written."""

from __future__ import annotations

from typing import Any

from edgepress.exporters.openvino_passes import MOVES, makers_of

#: The largest float.
_LARGEST = 3.4028234663852886e38
#: What scales of channels stand behind, or become part of.
_THROUGH = MOVES | {"Multiply"}


def gather_in_one_dimension(model: Any) -> None:
    """Take by indices of several dimensions, as windows put side by side do, by a row of them, and give the rest its shape; in place.

    The CPU plugin moves the scales of a convolution's channels behind a Gather as if it kept the number of dimensions, and ends with
    "[GatherTransformation] ... Argument shapes are inconsistent" (seen in OpenVINO 2026.4).
    """
    import numpy as np
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Gather" or op.get_attributes()["batch_dims"] or op.get_output_partial_shape(0).rank.is_dynamic:
            continue
        (values, indices, axis), shape = op.input_values(), list(op.get_output_partial_shape(0))
        fixed = axis.get_node().get_type_name() == "Constant" and all(size.is_static for size in shape[1:])
        if not fixed or int(axis.get_node().data.item()) == 0 or indices.get_partial_shape().rank.get_length() < 2:
            continue
        row = ops.gather(values, ops.reshape(indices, ops.constant(np.array([-1])), False), axis)
        sizes = np.array([-1, *(size.get_length() for size in shape[1:])])
        op.output(0).replace(ops.reshape(row, ops.constant(sizes), False).output(0))


def part_added_dimensions(model: Any) -> None:
    """Put a bound that no float is beyond between a layer without a bias and dimensions added behind its channels, in place.

    The CPU plugin moves the scales of a layer's channels behind a change of shape, for which it has no room there: it ends with
    "[ReshapeTransformation] ... CALLBACK HAS THROWN" (seen in OpenVINO 2026.4). Past a bound it moves none, and computes it in the kernel.
    """
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("Reshape", "Unsqueeze"):
            continue
        shapes = op.input_value(0).get_partial_shape(), op.get_output_partial_shape(0)
        if any(shape.rank.is_dynamic for shape in shapes):
            continue
        before, after = map(list, shapes)
        grown = 2 < len(before) < len(after) and before[1:] == after[1 : len(before)]
        if grown and any(maker.get_type_name() == "MatMul" for maker in makers_of(op.input_value(0), _THROUGH)):
            op.input(0).replace_source_output(ops.clamp(op.input_value(0), -_LARGEST, _LARGEST).output(0))
