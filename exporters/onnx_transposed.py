"""Transposed convolutions between integers as convolutions, for which ONNX Runtime has an integer kernel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepress.compress.quantize import phases
from edgepress.exporters.onnx_nodes import Graph, Writer, has, settings, shapes
from edgepress.exporters.onnx_passes import rewrite

#: Operators that a convolution's kernel computes before it rounds.
_FUSED = ("Relu", "Clip")


def convolve_phases(path: Path) -> None:
    """Write transposed convolutions that read integers, and whose answer is rounded, as convolutions (`phases.py`), in place.

    The integers of their outputs are then put beside each other with channels last, where whole rows of them move; what the convolution has
    too much at the margins is cut off. The sums are those of the transposed convolution.

    Args:
        path: the file, rewritten in place. Transposed convolutions whose sizes or weights are not known in it stay as they are.
    """
    import onnx

    model = onnx.load(path)
    if not has(model, "ConvTranspose"):
        return
    graph, known = Graph(model), shapes(model)
    made: dict[str, list[Any]] = {}
    for node in model.graph.node:
        rounded = _rounded(graph, node) if node.op_type == "ConvTranspose" else None
        extents, result = (known.get(name, [])[2:] for name in (node.input[0], node.output[0])) if rounded is not None else ([], [])
        if rounded is None or not extents or None in (*extents, *result):
            continue
        writer = Writer(model, node.output[0])
        grid = _convolve(writer, graph, node, [extent for extent in extents if extent is not None])
        made[node.output[0]] = writer.taken()
        writer.name = rounded.output[0]
        _spread(writer, rounded, grid, [extent for extent in result if extent is not None])
        made[rounded.output[0]] = writer.taken()
    rewrite(model, made, path)


def _rounded(graph: Graph, node: Any) -> Any | None:
    """The QuantizeLinear behind a transposed convolution of integers by constants; None for another one, of groups, or dilated."""
    given = settings(node)
    if given.get("group", 1) != 1 or any(step != 1 for step in given.get("dilations", ())):
        return None
    end: str = node.output[0]
    while (reader := next((each for kind in _FUSED if (each := graph.only_reader(end, kind)) is not None), None)) is not None:
        end = reader.output[0]
    weight, integers = (graph.maker(name, "DequantizeLinear") for name in (node.input[1], node.input[0]))
    constant = weight is not None and all(graph.array(name) is not None for name in (*weight.input, *node.input[2:]))
    return graph.only_reader(end, "QuantizeLinear") if constant and integers is not None else None


class _Grid(NamedTuple):
    """What a convolution of phases gives: places, phases of each, outputs before the first one that stays, and channels of an output."""

    extents: list[int]
    strides: list[int]
    margins: list[int]
    outputs: int


def _convolve(writer: Writer, graph: Graph, node: Any, extents: list[int]) -> _Grid:
    """Write the convolution in place of a transposed one."""
    rank, weight = len(extents), graph.maker(node.input[1])
    given = settings(node)
    strides, margins = list(given.get("strides", [1] * rank)), list(given.get("pads", [0] * 2 * rank))[:rank]
    assert weight is not None, "_rounded() chose the node"
    values, *steps = (graph.array(name) for name in weight.input)
    assert values is not None, "and its weight is constant"
    taps = [phases.taps(k, s) for k, s in zip(values.shape[2:], strides, strict=True)]
    padding = [count - 1 for count in taps]
    for dim in range(rank):
        if strides[dim] == 1:  # nothing to spread: the margin is taken off what is filled up
            taken = min(margins[dim], padding[dim])
            padding[dim], margins[dim] = padding[dim] - taken, margins[dim] - taken
    count = math.prod(strides)
    parts = [writer.constant("weight", phases.weight(values, strides))]
    for part, step in zip(("scale", "zero"), steps, strict=False):
        assert step is not None, "all of its grid is"
        parts.append(writer.constant(part, np.tile(step, count) if step.ndim else step))
    kernel = writer.add("DequantizeLinear", parts, f"{writer.name}_kernel", axis=0)
    bias = [writer.constant("bias", np.tile(bias, count)) for name in node.input[2:] if (bias := graph.array(name)) is not None]
    writer.add("Conv", [node.input[0], kernel, *bias], writer.name, kernel_shape=taps, pads=padding * 2)
    found = [extent + 2 * pad - tap + 1 for extent, pad, tap in zip(extents, padding, taps, strict=True)]
    return _Grid(found, strides, margins, values.shape[1])


def _spread(writer: Writer, rounded: Any, grid: _Grid, result: list[int]) -> None:
    """Round the convolution's outputs and put them beside each other, under the name of what is rounded now."""
    name, rank = writer.name, len(result)
    whole = [extent * stride for extent, stride in zip(grid.extents, grid.strides, strict=True)]
    if whole == result and max(grid.strides) == 1:
        writer.add("QuantizeLinear", rounded.input, name, **settings(rounded))
        return
    x = writer.add("QuantizeLinear", rounded.input, f"{name}_phases", **settings(rounded))
    x = writer.add("Transpose", [x], f"{name}_last", perm=[0, *range(2, 2 + rank), 1])
    if rank == 2 and grid.strides[0] > 1:
        rows, columns = grid.strides
        x = writer.add("Reshape", [x, writer.constant("apart", [0, 0, 0, rows, columns * grid.outputs])], f"{name}_phased")
        x = writer.add("Transpose", [x], f"{name}_rows", perm=[0, 1, 3, 2, 4])
    x = writer.add("Reshape", [x, writer.constant("whole", [0, *whole, grid.outputs])], f"{name}_spread")
    if whole != result:
        ends = [margin + extent for margin, extent in zip(grid.margins, result, strict=True)]
        cut = [writer.constant(*part) for part in (("begins", grid.margins), ("ends", ends), ("axes", range(1, 1 + rank)))]
        x = writer.add("Slice", [x, *cut], f"{name}_cut")
    writer.add("Transpose", [x], name, perm=[0, 1 + rank, *range(1, 1 + rank)])
