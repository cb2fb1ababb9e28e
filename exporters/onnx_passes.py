"""Rewrites of a finished ONNX file: half precision, and what onnxruntime's loader does to integers."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from pathlib import Path
from typing import Any

from edgepress.targets.errors import ExportError


def convert_to_fp16(path: Path, wide: Collection[str] = ()) -> None:
    """Store and compute in float16 in place; inputs and outputs of the model stay float32.

    Args:
        path: of the file.
        wide: ops that stay float32 beside those that onnxruntime keeps so.
    """
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kept = [*DEFAULT_OP_BLOCK_LIST, *wide]
    model = ir.from_proto(convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=kept))
    model.graph.sort()  # the converter puts its casts last
    _guard_turned_products(model.graph)
    write(ir.to_proto(model), path)


def _guard_turned_products(graph: Any) -> None:
    """Put a Max of one tensor, which is that tensor, between a Transpose that moves the first dimension and the product that reads it.

    onnxruntime 1.32 fuses the two across the cast that it puts between them, since it has no float16 product on CPUs, and ends the process.
    """
    import onnx_ir as ir

    for node in list(graph):
        read = node.inputs[0] if node.op_type == "MatMul" else None
        maker = read.producer() if read is not None else None
        if read is None or maker is None or maker.op_type != "Transpose":
            continue
        if "perm" in maker.attributes and maker.attributes["perm"].as_ints()[0] == 0:
            continue
        guarded = ir.Value(name=f"{read.name}_guarded_{node.outputs[0].name}", type=read.type, shape=read.shape)
        graph.insert_before(node, ir.Node("", "Max", [read], outputs=[guarded], name=guarded.name))
        node.replace_input_with(0, guarded)


#: How the names of weights end that are integers in the file, and floats from its loading on.
UNPACKED = "_integers"


def fold_at_load(path: Path, readers: Container[str] | None = None, suffix: str = "") -> None:
    """Store int8 weights so that onnxruntime turns them into floats once, when it loads them.

    It keeps a DequantizeLinear of a constant in the graph and runs it on every inference; a Cast times a constant scale
    is folded. The file stays as small, the arithmetic is the float model's.

    Args:
        path: the file, rewritten in place.
        readers: names of operators; weights that others read stay as they are. None for all weights.
        suffix: weights whose names end so do not stay, whatever reads them.

    Raises:
        ExportError: a weight has a zero point other than 0.
    """
    import onnx

    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    others = {name for node in model.graph.node if readers is not None and node.op_type not in readers for name in node.input}
    nodes = []
    for node in model.graph.node:
        stays = node.output[0] in others and not (suffix and node.input[0].endswith(suffix))
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors or stays:
            nodes.append(node)
            continue
        if len(node.input) > 2 and onnx.numpy_helper.to_array(tensors[node.input[2]]).any():
            raise ExportError(f"weight {node.input[0]!r} has a zero point", "int8 weights are symmetric", "Report this as a bug.")
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
        if scale.ndim:
            scale = scale.reshape([-1 if dimension == axis else 1 for dimension in range(len(tensors[node.input[0]].dims))])
        name = node.output[0]
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [f"{name}{UNPACKED}"], f"{name}_cast", to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Mul", [f"{name}{UNPACKED}", f"{name}_scale"], [name], f"{name}_mul"))
    if len(nodes) > len(model.graph.node):
        replace_nodes(model, nodes)
        write(model, path)


#: Ops whose float weight onnxruntime rounds to 8 bits, one scale per tensor, when it loads a file in which they read a DequantizeLinear.
_ROUNDED_AT_LOAD = ("Conv", "ConvTranspose", "Gemm")


def guard_float_layers(path: Path) -> None:
    """Keep layers that were left in float from becoming integers when the file is loaded, in place, those of unpacked integers too.

    A Max of one tensor, which is that tensor, stands between such a layer and the DequantizeLinear it reads; onnxruntime removes
    an Identity there before it looks for layers to round.
    """
    import onnx

    model = onnx.load(path)
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    floats |= {node.output[0] for node in model.graph.node if node.op_type == "Mul" and node.input[0].endswith(UNPACKED)}
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes = []
    for node in model.graph.node:
        if node.op_type in _ROUNDED_AT_LOAD and node.input[0] in dequantized and node.input[1] in floats:
            name = f"{node.output[0]}_guarded"
            nodes.append(onnx.helper.make_node("Max", [node.input[0]], [name], name))
            node.input[0] = name
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        replace_nodes(model, nodes)
        write(model, path)


def replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Put other nodes into an ONNX model, and take out those and the constants that nothing reads."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    _drop_unused(model)


def rewrite(model: Any, made: Mapping[str, list[Any]], path: Path) -> None:
    """Put other nodes in place of those whose first output is named, and write the file, where there are any."""
    if made:
        replace_nodes(model, [new for node in model.graph.node for new in made.get(node.output[0] if node.output else "", [node])])
        write(model, path)


def _drop_unused(model: Any) -> None:
    used = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if used.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            used.update(node.input)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def write(model: Any, path: Path) -> None:
    """Write a rewritten model without documentation and metadata, equal bytes for equal models."""
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    model.ClearField("doc_string")
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.producer_name, model.producer_version = "edgepress", ""
    path.write_bytes(model.SerializeToString(deterministic=True))
