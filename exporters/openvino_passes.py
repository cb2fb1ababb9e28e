"""Changes to a model read from ONNX that keep its values, each around something that the CPU plugin does wrongly or slowly."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

#: Ops that a dequantization is moved behind, with the values in their first input.
MOVES = frozenset(
    [
        "Clamp",
        "Gather",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StridedSlice",
        "Transpose",
        "Unsqueeze",
        "VariadicSplit",
    ]
)

#: Of these, the ones after which a tensor holds no other values than before, with what puts several together.
_KEEPS = frozenset(["Concat", "Interpolate", "MaxPool", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze", "VariadicSplit"])

_REDUCTIONS = {f"Reduce{name}": f"reduce_{name.lower()}" for name in ("Max", "Mean", "Min", "Prod", "Sum")}
#: Ops that the plugin computes within the kernel before them.
_ELEMENTWISE = frozenset(
    [
        "Add",
        "Clamp",
        "Convert",
        "Divide",
        "FakeQuantize",
        "Gelu",
        "HSwish",
        "Maximum",
        "Minimum",
        "Multiply",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Subtract",
        "Swish",
        "Tanh",
    ]
)


def fold_biases(model: Any) -> None:
    """Store the biases of convolutions in the shape they are added in, in place.

    Reading ONNX reshapes them at run time, to the rank of the convolution's result. Where the model needs its batch as a number (to
    repeat a class token), the CPU plugin takes it from that result as well, and with two readers it adds the bias behind the kernel;
    if rounding follows, it moves a bias per channel into the bounds of the FakeQuantize, wrongly (seen in OpenVINO 2026.4).
    """
    from openvino import op as ops

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Reshape" or op.get_output_partial_shape(0).is_dynamic:
            continue
        tensor, shape = (value.get_node() for value in op.input_values())
        if tensor.get_type_name() == "Constant" and shape.get_type_name() != "Constant":
            op.output(0).replace(ops.Constant(tensor.data.reshape(list(op.get_output_shape(0)))).output(0))


def drop_zero_offsets(model: Any) -> None:
    """Take out subtractions of all-zero zero points from int8 weights, in place.

    Where all shapes are static the CPU plugin takes one for work to be done at run time, and then computes layers and convolutions in
    floats (vision transformers at batch 1: 12 of 25 and 30 of 37 linear layers; seen in OpenVINO 2026.4). Weights that are unpacked
    first need it to be taken for weights at all.
    """
    from openvino import Type

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Subtract":
            continue
        weight, offset = (value.get_node() for value in op.input_values())
        weight = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
        if weight.get_type_name() != "Constant" or weight.get_element_type() != Type.i8:
            continue
        offset = _origin(offset)
        if offset.get_type_name() == "Constant" and not offset.data.any():
            op.output(0).replace(op.input_value(0))


def drop_repeated_roundings(model: Any) -> None:
    """Round once what is only moved before it is rounded again to the same integers, in place.

    The CPU plugin moves a dequantization behind such ops by itself. A second pair of rounding and dequantization it leaves there, as two
    or three kernels of their own (a U-Net of 0.5 ms has five such pairs; seen in OpenVINO 2026.4).
    """
    for op in model.get_ordered_ops():
        grid, rounding = grid_of(op), rounding_of(op)
        if not grid or rounding.input_value(0).get_node().get_type_name() not in _KEEPS:
            continue
        if all(grid_of(source) == grid for source in makers_of(rounding.input_value(0), _KEEPS)):
            op.output(0).replace(rounding.input_value(0))


def round_in_one(model: Any) -> None:
    """Write a rounding and the dequantization behind it as one FakeQuantize, in place.

    The CPU plugin then chooses where dequantizations stand and which integers are signed: transposed convolutions and group normalizations
    read integers without a zero point, and fewer kernels are left (seen in OpenVINO 2026.4).
    """
    from openvino import Type
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        bounds = grid_of(op)
        offset = _offset(op) if bounds else None
        if offset is None:
            continue
        scale, rounding = float(op.input_value(1).get_node().data.item()), rounding_of(op)
        values = (ops.constant((bound - offset) * scale, Type.f32) for bound in bounds[2:])
        whole = ops.fake_quantize(*rounding.input_values()[:3], *values, levels=rounding.get_attributes()["levels"])
        op.output(0).replace(whole.output(0))


def _offset(op: Any) -> float | None:
    """The number that is subtracted from integers in a dequantization of which an op is the last; None where it is no number."""
    offset = _origin(op.input_value(0).get_node().input_value(1).get_node())
    return float(offset.data.item()) if offset.get_type_name() == "Constant" and offset.data.size == 1 else None


def _origin(op: Any) -> Any:
    """What an op holds in another shape or type."""
    while op.get_type_name() in ("Reshape", "Convert"):
        op = op.input_value(0).get_node()
    return op


def rounding_of(op: Any) -> Any:
    """The FakeQuantize of a rounding and dequantization of which an op is the last; None for any other op."""
    for name in ("Multiply", "Subtract", "Convert", "Convert"):
        if op.get_type_name() != name:
            return None
        op = op.input_value(0).get_node()
    return op if op.get_type_name() == "FakeQuantize" else None


def grid_of(op: Any) -> tuple[float, ...]:
    """The bounds of the values and of the integers that an op is the dequantization of; empty where it is none, or they are no numbers."""
    rounding = rounding_of(op)
    bounds = [value.get_node() for value in rounding.input_values()[1:]] if rounding is not None else []
    if any(bound.get_type_name() != "Constant" or bound.data.size != 1 for bound in bounds):
        return ()
    return tuple(float(bound.data.item()) for bound in bounds)


def makers_of(value: Any, passed: Collection[str]) -> list[Any]:
    """The ops that made the values that come here through ops of some types alone, constants among them."""
    waiting, seen, found = [value.get_node()], set[str](), []
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() in seen:
            continue
        seen.add(op.get_friendly_name())
        name = op.get_type_name()
        if name not in passed or (name == "Interpolate" and op.get_attributes()["mode"] != "nearest"):
            found.append(op)
            continue
        every = name == "Concat" or name in _ELEMENTWISE  # what else others read are sizes and axes
        waiting += [item.get_node() for item in (op.input_values() if every else [op.input_value(0)])]
    return found


def keep_reduced_dimensions(model: Any) -> None:
    """Reduce four dimensions, squeezed afterwards, where numbers per channel meet a maximum, mean or sum; in place.

    Of three dimensions the CPU plugin computes all samples of a batch but one wrongly, in floats too: pooling over time before a batch
    norm, or points before a layer whose inputs are scaled. Of more it takes the wrong numbers behind a FakeQuantize where the dimension
    after the batch is reduced and gone. Scales of integer weights are numbers per channel too, which it moves behind the reduction
    (a mean over tokens behind a layer: -12 dB; seen in OpenVINO 2026.4).
    """
    import numpy as np
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        name = _REDUCTIONS.get(op.get_type_name())
        if name is None or op.input_value(0).get_partial_shape().rank.is_dynamic:
            continue
        axes = op.input_value(1).get_node()
        if axes.get_type_name() != "Constant":
            continue
        kept, rank = op.get_attributes()["keep_dims"], op.input_value(0).get_partial_shape().rank.get_length()
        taken = np.atleast_1d(axes.data) % rank
        if not (rank == 3 or (rank > 3 and not kept and 1 in taken)) or 0 in taken:
            continue
        if not (_by_channel(op.output(0)) or _of_channels(op.input_value(0))):
            continue
        value, readers = op.input_value(0), op.output(0).get_target_inputs()
        added = np.array([2] if rank == 3 else [], np.int64)
        if rank == 3:
            value = ops.unsqueeze(value, ops.constant(added))
            taken = np.where(taken == 2, 3, taken)
        rest = getattr(ops, name)(value, ops.constant(np.union1d(taken, added)), True)
        gone = added if kept else np.union1d(taken, added)
        rest = ops.squeeze(rest, ops.constant(gone))
        for reader in readers:
            reader.replace_source_output(rest.output(0))


def part_extremes_from_rounding(model: Any) -> None:
    """Put a change of shape between a maximum or minimum over dimensions and the rounding of what it gives, in place.

    The CPU plugin makes both one kernel, which rounds before it has compared all values: files of 14 dB (seen in OpenVINO 2026.4).
    """
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("ReduceMax", "ReduceMin") or not _is_rounded(op.output(0)):
            continue
        name, kept, readers = _REDUCTIONS[op.get_type_name()], op.get_attributes()["keep_dims"], op.output(0).get_target_inputs()
        found = getattr(ops, name)(*op.input_values(), not kept)
        shaped = (ops.unsqueeze if kept else ops.squeeze)(found, op.input_value(1))
        for reader in readers:
            reader.replace_source_output(shaped.output(0))


def _is_rounded(value: Any) -> bool:
    """Does a FakeQuantize read this, directly or behind operators element by element?"""
    return any(op.get_type_name() == "FakeQuantize" for op, _ in _behind(value))


def _by_channel(value: Any) -> bool:
    """Does an operator element by element read this together with several constants, directly or behind others of its kind?"""
    for op, before in _behind(value):
        others = [other.get_node() for other in op.input_values() if other.get_node() != before]
        if any(other.get_type_name() == "Constant" and other.data.size > 1 for other in others):
            return True
    return False


def _behind(value: Any) -> Iterator[tuple[Any, Any]]:
    """The operators element by element that read this or what others of their kind give, once each, and what of it they read."""
    waiting, seen = [value], set[str]()
    while waiting:
        before = waiting.pop()
        for op in (reader.get_node() for reader in before.get_target_inputs()):
            if op.get_type_name() in _ELEMENTWISE and op.get_friendly_name() not in seen:
                seen.add(op.get_friendly_name())
                waiting.append(op.output(0))
                yield op, before.get_node()


def _of_channels(value: Any) -> bool:
    """Is this what a convolution or a layer gives, element by element? With weights in integers it has a scale for each channel."""
    names = [op.get_type_name() for op in makers_of(value, _ELEMENTWISE | MOVES)]
    return any(name.endswith(("Convolution", "ConvolutionBackpropData")) or name == "MatMul" for name in names)


def has_offset(value: Any) -> bool:
    """Is this what integers less a zero point stand for?"""
    op = value.get_node()
    name = op.get_type_name()
    if name == "Concat":
        return any(map(has_offset, op.input_values()))
    if name in MOVES:
        return has_offset(op.input_value(0))
    if name != "Multiply" or op.input_value(0).get_node().get_type_name() != "Subtract":
        return False
    offset = _origin(op.input_value(0).get_node().input_value(1).get_node())
    return bool(offset.get_type_name() != "Constant" or offset.data.any())
