"""Operators between integers written as what ONNX Runtime has kernels for: it has none for a HardSigmoid or a mean of integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.onnx_passes import replace_nodes, write

_CONTRIB = "com.microsoft"
#: Dimensions with channels last, and those with channels first of the former.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
#: Operators behind a convolution that leave its layout as it is.
_KEEPS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Mul", "Tanh", "Gelu", "MaxPool", "Max"})
#: The largest integer of a tensor of activations.
_LARGEST = 255


def pool_means(path: Path) -> None:
    """Write means over all positions as GlobalAveragePool, in place.

    It has a kernel for integers (QLinearGlobalAveragePool), and one for the blocked layout of float convolutions; ReduceMean has neither.
    A mean that drops the positions is flattened afterwards; between a DequantizeLinear and a QuantizeLinear the pool gets a pair of
    its own, with the same scale, so that both stay integers.

    Args:
        path: the file, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    graph = _Graph(model)
    ranks = _ranks(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        axes = graph.array(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        rank = ranks.get(node.input[0], 0) if axes is not None else 0
        if axes is None or rank < 3 or sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
            nodes.append(node)
            continue
        (name,) = node.output
        kept = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        if kept:
            nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [name], name))
            continue
        pooled = f"{name}_pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], pooled))
        rounded = graph.only_reader(name, "QuantizeLinear")
        if rounded is not None and graph.maker(node.input[0], "DequantizeLinear") is not None:
            nodes.append(onnx.helper.make_node("QuantizeLinear", [pooled, *rounded.input[1:]], [f"{pooled}_q"], f"{pooled}_q"))
            nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{pooled}_q", *rounded.input[1:]], [f"{pooled}_dq"], f"{pooled}_dq"))
            pooled = f"{pooled}_dq"
        nodes.append(onnx.helper.make_node("Flatten", [pooled], [name], name, axis=1))
    if any(one is not other for one, other in zip(nodes, model.graph.node, strict=False)):
        replace_nodes(model, nodes)
        write(model, path)


def sum_hard_sigmoids(path: Path) -> None:
    """Write a HardSigmoid between integers as a sum with a constant, in place: rounding its answer clips it at 0 and 1.

    max(0, min(1, a x + b)) in steps of s is x + b/a in steps of s/a, clipped to the same integers; what b/s has behind the point is added
    as the constant, the rest is the zero point. The integers are then read in steps of s. Only where the scale reaches no further
    than 1, and the zero point fits.

    Args:
        path: the file, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    graph = _Graph(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        steps = _steps(graph, node) if node.op_type == "HardSigmoid" else None
        if steps is None:
            nodes.append(node)
            continue
        (name,) = node.output
        for part, array in (
            ("one", np.uint8(steps.shift > 0)),
            ("scale", np.float32(abs(steps.shift) or 1)),
            ("zero", np.uint8(steps.shift < 0)),
            ("step", np.float32(steps.step)),
            ("point", np.uint8(steps.zero_point)),
        ):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{part}"))
        shift = [f"{name}_one", f"{name}_scale", f"{name}_zero"]
        nodes.append(onnx.helper.make_node("DequantizeLinear", shift, [f"{name}_shift"], f"{name}_shift"))
        nodes.append(onnx.helper.make_node("Add", [node.input[0], f"{name}_shift"], [f"{name}_sum"], f"{name}_sum"))
        clipped = [f"{name}_sum", f"{name}_step", f"{name}_point"]
        nodes.append(onnx.helper.make_node("QuantizeLinear", clipped, [f"{name}_q"], f"{name}_q"))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{name}_q", *steps.parameters], [name], f"{name}_dq"))
    if len(nodes) > len(model.graph.node):
        replace_nodes(model, nodes)
        write(model, path)


def fuse_silus(path: Path) -> None:
    """Write the product of a dequantized tensor with its Sigmoid as QuickGelu, in place.

    onnxruntime does that by itself elsewhere, but not where the two read a DequantizeLinear, which it makes two of.

    Args:
        path: the file, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    graph = _Graph(model)
    fused: dict[str, Any] = {}
    for node in model.graph.node:
        product = graph.only_reader(node.output[0], "Mul") if node.op_type == "Sigmoid" else None
        if product is None or graph.maker(node.input[0], "DequantizeLinear") is None:
            continue
        if sorted(product.input) == sorted([node.input[0], node.output[0]]):
            quick = onnx.helper.make_node("QuickGelu", node.input, product.output, product.name, domain=_CONTRIB, alpha=1.0)
            fused |= {node.output[0]: None, product.output[0]: quick}
    if fused:
        nodes = [fused.get(node.output[0], node) if node.output else node for node in model.graph.node]
        replace_nodes(model, [node for node in nodes if node is not None])
        if _CONTRIB not in {item.domain for item in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid(_CONTRIB, 1))
        write(model, path)


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
    graph, ranks = _Graph(model), _ranks(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or ranks.get(node.input[0]) != len(_LAST) or not _is_entry(graph, node):
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


def _is_entry(graph: _Graph, node: Any) -> bool:
    """Does a QuantizeLinear round what a float convolution made, for integer ones?"""
    made = node.input[0]
    while (maker := graph.maker(made)) is not None and maker.op_type in _KEEPS:
        made = maker.input[0]
    floats = maker is not None and maker.op_type == "Conv" and graph.array(maker.input[1]) is not None
    return floats and any(reader.op_type == "Conv" for pair in graph.readers(node.output[0]) for reader in graph.readers(pair.output[0]))


@dataclass(frozen=True)
class _Steps:
    """A HardSigmoid as a sum: the constant, step and zero point of the sum, and the names of the scale and zero point it is read with."""

    shift: float
    step: float
    zero_point: int
    parameters: list[str]


def _steps(graph: _Graph, node: Any) -> _Steps | None:
    rounded = graph.only_reader(node.output[0], "QuantizeLinear")
    if rounded is None or graph.maker(node.input[0], "DequantizeLinear") is None or len(rounded.input) < 3:
        return None
    scale, zero = graph.array(rounded.input[1]), graph.array(rounded.input[2])
    if scale is None or zero is None or scale.ndim or zero.dtype != np.uint8 or zero != 0:
        return None
    slope, offset = (
        next((attribute.f for attribute in node.attribute if attribute.name == name), default)
        for name, default in (("alpha", 0.2), ("beta", 0.5))
    )
    reach, point = 1 / float(scale), offset / float(scale)
    if slope <= 0 or round(reach) < _LARGEST or not 0 <= round(point) <= _LARGEST:
        return None
    step = float(scale) / slope
    return _Steps((point - round(point)) * step, step, round(point), list(rounded.input[1:]))


class _Graph:
    """Who makes and who reads what in an ONNX graph, and its constants."""

    def __init__(self, model: Any) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in model.graph.output}

    def array(self, name: str) -> np.ndarray | None:
        """A constant's elements; None for what is computed."""
        import onnx

        return onnx.numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def maker(self, name: str, operator: str = "") -> Any | None:
        """The node that makes a tensor, where it is such an operator; None for inputs and constants."""
        node = self._makers.get(name)
        return node if node is not None and operator in ("", node.op_type) else None

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def only_reader(self, name: str, operator: str) -> Any | None:
        """The one node that reads a tensor, where it is such an operator and the tensor no output of the model."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator and name not in self._outputs else None


def _ranks(model: Any) -> dict[str, int]:
    """Tensor -> its number of dimensions, where inference finds it."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField("shape")}
