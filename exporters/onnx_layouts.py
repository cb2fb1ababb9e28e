"""Integers with channels last, as ONNX Runtime's integer convolutions read and write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.onnx_nodes import Graph, Writer, has, settings, shapes
from edgepress.exporters.onnx_passes import replace_nodes, rewrite, write

#: Dimensions with channels last, and those with channels first of the former.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
#: Operators behind a convolution that leave its layout as it is.
_KEEPS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Mul", "Tanh", "Gelu", "MaxPool", "Max"})
#: Ways to name the places that an enlarged tensor reads, which are the same where every place is repeated.
_REPEATING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}


def turn_entries(path: Path) -> None:
    """Let integers that come from float convolutions begin with channels last, in place.

    onnxruntime's integer convolutions read and write channels last, and it moves the turns around them until they meet. Behind a float
    convolution whose tensor a residual sum reads too it leaves one at every layer: 18 in ResNet-20, a tenth of its time. Here the floats
    are turned, rounded, and turned back behind a Reshape that changes nothing, past which the two cannot cancel.

    Args:
        path: the file, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    graph, known = Graph(model), shapes(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or len(known.get(node.input[0], ())) != len(_LAST) or not _is_entry(graph, node):
            nodes.append(node)
            continue
        (name,) = node.output
        turned, rounded, same = f"{name}_turned", f"{name}_last", f"{name}_same"
        nodes.append(onnx.helper.make_node("Transpose", [node.input[0]], [turned], turned, perm=_LAST))
        nodes.append(onnx.helper.make_node("QuantizeLinear", [turned, *node.input[1:]], [rounded], rounded))
        nodes.append(onnx.helper.make_node("Reshape", [rounded, f"{name}_shape"], [same], same))
        nodes.append(onnx.helper.make_node("Transpose", [same], [name], name, perm=_FIRST))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(len(_LAST), np.int64), f"{name}_shape"))
    if len(nodes) > len(model.graph.node):
        replace_nodes(model, nodes)
        write(model, path)


def _is_entry(graph: Graph, node: Any) -> bool:
    """Does a QuantizeLinear round what a float convolution made, for integer ones?"""
    made = node.input[0]
    while (maker := graph.maker(made)) is not None and maker.op_type in _KEEPS:
        made = maker.input[0]
    floats = maker is not None and maker.op_type == "Conv" and graph.array(maker.input[1]) is not None
    return floats and any(reader.op_type == "Conv" for pair in graph.readers(node.output[0]) for reader in graph.readers(pair.output[0]))


def repeat_rows(path: Path) -> None:
    """Enlarge integers by copies of whole rows of channels, in place: what is rounded, repeated a whole number of times and read again.

    onnxruntime moves the turns of layout around integer convolutions through a Resize, whose kernel for channels last takes one value after
    the other: 156 us for 64 channels of 64x64, where the copies take 10.

    Args:
        path: the file, rewritten in place. Other ways of resizing, and tensors of unknown sizes, stay as they are.
    """
    import onnx

    model = onnx.load(path)
    if not has(model, "Resize"):
        return
    graph, known = Graph(model), shapes(model)
    made: dict[str, list[Any]] = {}
    for node in model.graph.node:
        factors = _factors(graph, node, known) if node.op_type == "Resize" else []
        if not factors:
            continue
        source, rounded = graph.maker(node.input[0]), graph.only_reader(node.output[0], "QuantizeLinear")
        assert source is not None and rounded is not None, "_factors() looked for both"
        writer, rank = Writer(model, rounded.output[0]), len(factors)
        channels, *extents = [size or 0 for size in known[node.input[0]][1:]]
        x = writer.add("Transpose", [source.input[0]], f"{writer.name}_last", perm=[0, *range(2, 2 + rank), 1])
        for dim in reversed(range(rank)):
            if factors[dim] > 1:
                rows = [0, int(np.prod(extents[: dim + 1])), int(np.prod(extents[dim + 1 :])) * channels]
                x = writer.add("Reshape", [x, writer.constant(f"rows{dim}", rows)], f"{writer.name}_by{dim}")
                x = writer.add("Concat", [x] * factors[dim], f"{writer.name}_copies{dim}", axis=2)
                extents[dim] *= factors[dim]
        x = writer.add("Reshape", [x, writer.constant("whole", [0, *extents, channels])], f"{writer.name}_enlarged")
        writer.add("Transpose", [x], writer.name, perm=[0, 1 + rank, *range(1, 1 + rank)])
        made |= {node.output[0]: [], rounded.output[0]: writer.taken()}
    rewrite(model, made, path)


def _factors(graph: Graph, node: Any, known: dict[str, list[int | None]]) -> list[int]:
    """How often each place along each dimension is repeated between two integers on the same grid; none where it is not so."""
    source, rounded = graph.maker(node.input[0], "DequantizeLinear"), graph.only_reader(node.output[0], "QuantizeLinear")
    before, after = (known.get(name, [])[1:] for name in (node.input[0], node.output[0]))
    given = {key: value.decode() for key, value in settings(node).items() if isinstance(value, bytes)}
    way = (given.get("coordinate_transformation_mode", "half_pixel"), given.get("nearest_mode", "round_prefer_floor"))
    if source is None or rounded is None or given.get("mode", "nearest") != "nearest" or way not in _REPEATING:
        return []
    if len(before) not in (2, 3) or None in (*before, *after) or source.input[1:] != rounded.input[1:]:
        return []
    ratios = [(b or 0) / (a or 1) for a, b in zip(before, after, strict=True)]
    return [int(ratio) for ratio in ratios[1:]] if all(ratio == int(ratio) >= 1 for ratio in ratios) and ratios[0] == 1 else []
