"""Transposed convolutions of a finished .tflite file in integers.

The converter turns their weights around at run time, behind the dequantization, and so leaves them in float: three ops more for each, on
every run, and no integer kernel. In files of floats it turns constants, as is done here. With a stride of 1 it writes CONV_2D.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepress.exporters.litert_flatbuffer import TfliteFile

_INT8, _INT32 = 9, 2
_REVERSE, _TRANSPOSE, _QUANTIZE, _DEQUANTIZE, _RELU = 105, 39, 114, 6, 19
#: TRANSPOSE_CONV and CONV_2D -> which of its inputs are what is convolved, the weight and the bias.
_CONVOLUTIONS = {67: (2, 1, 3), 3: (0, 1, 2)}
#: The first version of both with int8, scales per channel and a bias.
_VERSION = 3
#: Lowest integer: where it stands for 0, rounding is a ReLU too.
_LOWEST = -128
#: Fused activations that rounding to a lowest integer of 0 makes superfluous: none, and RELU.
_NONE, _FUSED_RELU = 0, 1


def convolve_in_integers(file: TfliteFile) -> None:
    """Give convolutions between integers whose weight is turned at run time the integer kernel, in place.

    Those whose weight has a scale per input channel have none and stay as they are.
    """
    before = len(file.graph.operators)
    for operator in [operator for operator in file.graph.operators if file.builtin(operator) in _CONVOLUTIONS]:
        read, weight, bias = _CONVOLUTIONS[file.builtin(operator)]
        turned, source, ends = _weight(file, operator.inputs[weight]), file.maker(operator.inputs[read]), _rounded(file, operator)
        if turned is None or source is None or file.builtin(source) != _DEQUANTIZE or not ends:
            continue
        given = file.graph.tensors[source.inputs[0]]
        if given.type != _INT8:
            continue
        integers, scales = turned
        inputs = dict(enumerate(operator.inputs)) | {read: source.inputs[0]}
        inputs[weight] = file.constant(_named(file, inputs[weight]), integers, _INT8, scales)
        added = file.data(inputs[bias], np.float32) if inputs.get(bias, -1) >= 0 else None
        if added is not None:
            steps = scales * np.float32(given.quantization.scale[0])
            inputs[bias] = file.constant(_named(file, inputs[bias]), np.round(added / steps).astype(np.int32), _INT32, steps)
        operator.inputs, operator.outputs = [inputs[place] for place in sorted(inputs)], ends[-1].outputs
        operator.builtinOptions.fusedActivationFunction = _NONE
        code = file.model.operatorCodes[operator.opcodeIndex]
        operator.opcodeIndex = file.code(code.builtinCode, max(code.version, _VERSION))
        file.drop(ends)
    if len(file.graph.operators) < before:
        file.drop_unread()


def _weight(file: TfliteFile, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers (out, height, width, in) and scales (out,) of tensor `index`; None where it is no constant, or has other scales."""
    found = _turned(file, index)
    if found is None:
        return None
    integers, scales = found
    if integers.ndim != 4:
        return None
    row = scales[:, :1, :1, :1]
    return (np.ascontiguousarray(integers), row.reshape(-1).copy()) if (scales == row).all() else None


def _turned(file: TfliteFile, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers and their scales, of one shape, as the ops before a tensor turn them."""
    operator = file.maker(index)
    name = file.builtin(operator) if operator is not None else None
    if name in (_REVERSE, _TRANSPOSE):
        assert operator is not None
        before, axes = _turned(file, operator.inputs[0]), file.data(operator.inputs[1], np.int32)
        if before is None or axes is None:
            return None
        turn = np.flip if name == _REVERSE else np.transpose
        return turn(before[0], tuple(axes)), turn(before[1], tuple(axes))
    if name != _DEQUANTIZE:
        return None
    assert operator is not None
    tensor, values = file.graph.tensors[operator.inputs[0]], file.data(operator.inputs[0], np.int8)
    if tensor.type != _INT8 or values is None:
        return None
    shape = [1] * values.ndim
    shape[tensor.quantization.quantizedDimension] = -1
    scales = np.asarray(tensor.quantization.scale, np.float32).reshape(shape if len(tensor.quantization.scale) > 1 else [1] * values.ndim)
    return values, np.broadcast_to(scales, values.shape)


def _rounded(file: TfliteFile, operator: Any) -> list[Any]:
    """The ops from an op to the integers that it is rounded to, and nothing else; empty where it is read in float."""
    ends: list[Any] = []
    clipped, index = operator.builtinOptions.fusedActivationFunction, operator.outputs[0]
    while True:
        readers = file.readers(index)
        if len(readers) != 1 or index in file.graph.outputs or clipped not in (_NONE, _FUSED_RELU):
            return []
        ends.append(readers[0])
        if file.builtin(readers[0]) == _QUANTIZE:
            zero = file.graph.tensors[readers[0].outputs[0]].quantization.zeroPoint[0]
            return ends if clipped == _NONE or zero == _LOWEST else []
        if file.builtin(readers[0]) != _RELU:
            return []
        clipped, index = _FUSED_RELU, readers[0].outputs[0]


def _named(file: TfliteFile, index: int) -> bytes:
    return bytes(file.graph.tensors[index].name) + b"_integers"
