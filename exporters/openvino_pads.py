"""Zeros in front of and behind the dimensions of integers, which the CPU plugin pads slowly, or wrongly."""

from __future__ import annotations

from typing import Any

from edgepress.exporters.openvino_passes import grid_of, has_offset, rounding_of


def pad_within_layers(model: Any) -> None:
    """Let convolutions pad what they read themselves, in place, also where integers are padded with zeros and rounded again.

    The CPU plugin does so for floats alone: a net of four causal convolutions took 1.37 of its float time (seen in OpenVINO 2026.4).
    """
    import numpy as np
    from openvino import opset13 as ops

    layers = {"Convolution": ops.convolution, "GroupConvolution": ops.group_convolution}
    for op in model.get_ordered_ops():
        if op.get_type_name() not in layers:
            continue
        rounded = op.input_value(0)
        grid = grid_of(rounded.get_node())
        rounding = rounding_of(rounded.get_node()) if grid else None
        pad = (rounded if rounding is None else rounding.input_value(0)).get_node()
        margins, given = _margins(pad), op.get_attributes()
        if margins is None or given["auto_pad"] != "explicit":
            continue
        source = pad.input_value(0)
        if rounding is not None and grid_of(source.get_node()) != grid:  # floats are padded: they are rounded first
            if len(rounded.get_target_inputs()) > 1:
                continue
            rounding.input(0).replace_source_output(source)
            source = rounded
        pads = (np.array([given["pads_begin"], given["pads_end"]]) + margins).tolist()
        whole = layers[op.get_type_name()](source, op.input_value(1), given["strides"], *pads, given["dilations"])
        whole.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(whole.output(0))


def _margins(pad: Any) -> Any:
    """Zeros before and behind each dimension of an image, (2, dimensions); None where an op pads with something else, or is no pad."""
    import numpy as np

    if pad.get_type_name() != "Pad" or pad.get_attributes()["pad_mode"] != "constant":
        return None
    begin, end, *value = (item.get_node() for item in pad.input_values()[1:])
    if any(item.get_type_name() != "Constant" for item in (begin, end, *value)) or any(item.data.any() for item in value):
        return None
    margins = np.array([begin.data, end.data])
    return None if margins[:, :2].any() or margins.min() < 0 else margins[:, 2:]


def pad_two_dimensions(model: Any) -> None:
    """Pad a second dimension by one, which is cut off again, where integers with a zero point are padded in one alone; in place.

    The CPU plugin moves a dequantization behind a pad of one dimension and gives each position a zero point of its own, which ops behind
    it then read wrongly or cannot: files of 9 to 13 dB, or none that loads (seen in OpenVINO 2026.4). Pads of two dimensions it leaves.
    """
    import numpy as np
    from openvino import opset13 as ops

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Pad" or not has_offset(op.input_value(0)):
            continue
        bounds = [op.input_value(index).get_node() for index in (1, 2)]
        if any(bound.get_type_name() != "Constant" for bound in bounds):
            continue
        begin, end = (np.array(bound.data) for bound in bounds)
        padded = np.flatnonzero((begin != 0) | (end != 0))
        if len(padded) != 1:
            continue
        second = len(begin) - 1 if padded[0] != len(begin) - 1 else len(begin) - 2
        end[second] = 1
        readers = op.output(0).get_target_inputs()
        wide = ops.pad(op.input_value(0), ops.constant(begin), ops.constant(end), op.get_attributes()["pad_mode"], *op.input_values()[3:])
        cut = ops.slice(wide, *(ops.constant(np.array([at])) for at in (0, -1, 1, second)))
        for reader in readers:
            reader.replace_source_output(cut.output(0))
