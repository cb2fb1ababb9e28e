"""Layers of a static .tflite file that read floats and a weight in integers, as those of LSTMs and GRUs step by step.

Their kernel rounds what it reads while it runs, row by row, and multiplies integers; the converter unpacks the weight before it instead.
"""

from __future__ import annotations

import numpy as np

from edgepress.exporters.litert_flatbuffer import TfliteFile

_FLOAT32, _INT8 = 0, 9
_FULLY_CONNECTED, _DEQUANTIZE = 9, 6


def multiply_in_integers(file: TfliteFile) -> bool:
    """Let FULLY_CONNECTED between floats read the integers of its weight, in place.

    Returns:
        Was there one?
    """
    found = False
    for operator in file.graph.operators:
        if file.builtin(operator) != _FULLY_CONNECTED:
            continue
        read, weight, result = (file.graph.tensors[index] for index in (*operator.inputs[:2], operator.outputs[0]))
        source = file.maker(operator.inputs[1])
        if source is None or file.builtin(source) != _DEQUANTIZE or {read.type, weight.type, result.type} != {_FLOAT32}:
            continue
        stored = source.inputs[0]
        integers, grid = file.graph.tensors[stored], file.graph.tensors[stored].quantization
        rows = integers.type == _INT8 and len(grid.scale) == integers.shape[0] and grid.quantizedDimension == 0
        if rows and file.data(stored, np.int8) is not None and not np.any(grid.zeroPoint):
            operator.inputs[1], found = stored, True
    if found:
        file.drop_unread()
    return found
