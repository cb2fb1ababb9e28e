"""Operators between integers written as what ONNX Runtime has kernels for: it has none for a HardSigmoid or a mean of integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.onnx_nodes import Graph, Writer, has, settings, shapes
from edgepress.exporters.onnx_passes import replace_nodes, rewrite, write

_CONTRIB = "com.microsoft"
#: The largest integer of a tensor of activations.
_LARGEST = 255
#: Of two weights, products with it stay within 16 bits.
_EXACT = 64


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
    graph = Graph(model)
    known = shapes(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        axes = graph.array(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        rank = len(known.get(node.input[0], ())) if axes is not None else 0
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


def convolve_averages(path: Path) -> None:
    """Write averages of windows between integers as depthwise convolutions, in place.

    The kernel for averages of integers (QLinearAveragePool) takes fourteen times as long: 67 us instead of 5 for 3x3 windows of 64 channels
    of 16x16. The integers of the weights are all one number, so that the sums are exact: the largest of which two products with a byte stay
    within 16 bits.

    Args:
        path: the file, rewritten in place. Averages that leave margins out of account stay as they are.
    """
    import onnx

    model = onnx.load(path)
    if not has(model, "AveragePool"):
        return
    graph, known = Graph(model), shapes(model)
    made: dict[str, list[Any]] = {}
    for node in model.graph.node:
        channels = [*known.get(node.input[0], []), None, None][1] if node.op_type == "AveragePool" else None
        between = channels and graph.maker(node.input[0], "DequantizeLinear") and graph.only_reader(node.output[0], "QuantizeLinear")
        given = settings(node) if between else {}
        if not given or given.get("ceil_mode") or (any(given.get("pads", ())) and not given.get("count_include_pad")):
            continue
        (name,), window = node.output, given["kernel_shape"]
        writer = Writer(model, name)
        share = np.float32(1 / (_EXACT * math.prod(window)))
        arrays: dict[str, np.ndarray | np.generic] = {
            "weight": np.full((channels, 1, *window), _EXACT, np.int8),
            "scale": share,
            "zero": np.int8(0),
        }
        kernel = writer.add("DequantizeLinear", [writer.constant(*part) for part in arrays.items()], f"{name}_kernel")
        kept = {key: given[key] for key in ("kernel_shape", "strides", "pads", "dilations") if key in given}
        writer.add("Conv", [node.input[0], kernel], name, group=channels, **kept)
        made[name] = writer.taken()
    rewrite(model, made, path)


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
    graph = Graph(model)
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


def write_mish(path: Path) -> None:
    """Write Mish, x tanh(softplus(x)), by one exponential, in place: with n = exp(x) it is x (n^2 + 2n) / (n^2 + 2n + 2).

    onnxruntime computes it by a Softplus of ten nanoseconds a value; all of this takes one. From 20 on n is that of 20: the quotient is 1.

    Args:
        path: of a file of float32, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    made: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type != "Mish":
            continue
        (x,), (name,) = node.input, node.output
        writer = Writer(model, name)
        two = writer.constant("two", np.float32(2))
        power = writer.add("Exp", [writer.add("Min", [x, writer.constant("end", np.float32(20))], f"{name}_least")], f"{name}_exp")
        upper = writer.add("Mul", [power, writer.add("Add", [power, two], f"{name}_more")], f"{name}_upper")
        share = writer.add("Div", [upper, writer.add("Add", [upper, two], f"{name}_lower")], f"{name}_share")
        writer.add("Mul", [x, share], name)
        made[name] = writer.taken()
    rewrite(model, made, path)


def fuse_silus(path: Path) -> None:
    """Write the product of a dequantized tensor with its Sigmoid as QuickGelu, in place.

    onnxruntime does that by itself elsewhere, but not where the two read a DequantizeLinear, which it makes two of.

    Args:
        path: the file, rewritten in place.
    """
    import onnx

    model = onnx.load(path)
    graph = Graph(model)
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


@dataclass(frozen=True)
class _Steps:
    """A HardSigmoid as a sum: the constant, step and zero point of the sum, and the names of the scale and zero point it is read with."""

    shift: float
    step: float
    zero_point: int
    parameters: list[str]


def _steps(graph: Graph, node: Any) -> _Steps | None:
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
