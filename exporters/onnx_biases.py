"""Biases of integer layers in a finished ONNX file, as onnxruntime adds them without an operator of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.onnx_passes import replace_nodes, write


def quantize_output_biases(path: Path) -> None:
    """Give Gemms whose output stays float an int32 bias, in place: with a float one onnxruntime keeps the product in float.

    The bias has scale (activation scale x weight scale) per channel and zero point 0, as the integer accumulator has.
    """
    import onnx

    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    rounded = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    nodes = []
    for node in model.graph.node:
        pair = [makers.get(name) for name in node.input[:2]]
        wanted = node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in tensors and node.output[0] not in rounded
        if wanted and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in pair):
            source, weight = (onnx.numpy_helper.to_array(tensors[maker.input[1]]) for maker in pair if maker is not None)
            bias = onnx.numpy_helper.to_array(tensors[node.input[2]])
            name, scale = f"{node.output[0]}_bias", np.broadcast_to(source * weight, bias.shape).astype(np.float32)
            limit = 2**31 - 1
            integers = np.clip(np.round(bias / scale.astype(np.float64)), -limit, limit).astype(np.int32)
            for key, value in (("integers", integers), ("scale", scale), ("zero", np.zeros(bias.shape, np.int32))):
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{key}"))
            inputs = [f"{name}_integers", f"{name}_scale", f"{name}_zero"]
            nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dequantize", axis=0))
            node.input[2] = name
        nodes.append(node)
    replace_nodes(model, nodes)
    write(model, path)


@dataclass(frozen=True)
class _Layer:
    """An integer matrix product and the Add of its bias.

    Attributes:
        product: the MatMul.
        source, weight: the DequantizeLinear of what it reads, and of its weight.
        turned: the Transpose of the weight, None where there is none.
        add: the Add.
        bias: name of the constant.
    """

    product: Any
    source: Any
    weight: Any
    turned: Any
    add: Any
    bias: str

    @property
    def integers(self) -> str:
        """Name of the integer weight, inputs in dimension 0."""
        name: str = self.weight.input[0] if self.turned is None else f"{self.turned.output[0]}_integers"
        return name

    def node(self) -> Any:
        """Product and Add as one node."""
        import onnx

        source, weight = self.source.input, self.weight.input
        inputs = [source[0], self.integers, source[1], weight[1], source[2], "", self.bias]
        return onnx.helper.make_node("MatMulIntegerToFloat", inputs, self.add.output, self.product.name, domain="com.microsoft")


def fuse_biases(path: Path) -> None:
    """Write integer layers with a bias as onnxruntime's MatMulIntegerToFloat, in place, which adds the bias while the result is at hand.

    Its loader makes that op of a MatMul between DequantizeLinears too, but leaves the Add apart. Results are equal bit for bit.
    """
    import onnx

    model = onnx.load(path)
    layers = {layer.add.output[0]: layer for layer in _layers(model)}
    if not layers:
        return
    products = {layer.product.output[0] for layer in layers.values()}
    turned = {layer.integers: layer for layer in layers.values() if layer.turned is not None}
    # of constants: onnxruntime transposes them once, when it loads the file
    nodes = [onnx.helper.make_node("Transpose", [layer.weight.input[0]], [name], name, perm=[1, 0]) for name, layer in turned.items()]
    for node in model.graph.node:
        if node.output[0] not in products:
            nodes.append(layers[node.output[0]].node() if node.output[0] in layers else node)
    for kind in ("Transpose", "DequantizeLinear"):
        read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
        nodes = [node for node in nodes if node.op_type != kind or read.intersection(node.output)]
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    replace_nodes(model, nodes)
    write(model, path)


def _layers(model: Any) -> list[_Layer]:
    nodes = list(model.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    readers = Counter([*(name for node in nodes for name in node.input), *(output.name for output in model.graph.output)])
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for add in (node for node in nodes if node.op_type == "Add"):
        product = next((makers[name] for name in add.input if name in makers and makers[name].op_type == "MatMul"), None)
        bias = next((name for name in add.input if name in tensors), None)
        if product is None or bias is None or readers[product.output[0]] > 1:
            continue
        source, weight = (makers.get(name) for name in product.input)
        turned = weight if weight is not None and weight.op_type == "Transpose" else None
        weight = makers.get(turned.input[0]) if turned is not None else weight
        if source is None or weight is None or not _is_rounded(source, makers):
            continue
        outputs = _outputs(weight, tensors, 1 if turned is None else 0)
        if outputs is not None and list(tensors[bias].dims) == [outputs]:
            found.append(_Layer(product, source, weight, turned, add, bias))
    return found


def _is_rounded(node: Any, makers: Mapping[str, Any]) -> bool:
    """Does this node dequantize what another one quantized?"""
    maker = makers.get(node.input[0])
    return node.op_type == "DequantizeLinear" and len(node.input) == 3 and maker is not None and maker.op_type == "QuantizeLinear"


def _outputs(node: Any, tensors: Mapping[str, Any], axis: int) -> int | None:
    """The size along `axis` of the int8 matrix that a node dequantizes, with zero point 0 and one scale or one per index of `axis`.

    None for any other node.
    """
    import onnx

    weight = tensors.get(node.input[0])
    if node.op_type != "DequantizeLinear" or weight is None or weight.data_type != onnx.TensorProto.INT8 or len(weight.dims) != 2:
        return None
    along = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    symmetric = len(node.input) < 3 or not onnx.numpy_helper.to_array(tensors[node.input[2]]).any()
    return int(weight.dims[axis]) if symmetric and (along == axis or not tensors[node.input[1]].dims) else None
