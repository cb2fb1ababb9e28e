"""Reading OpenVINO models: the precision each executed layer runs in, its multiply-accumulates, its intermediate tensors."""

from __future__ import annotations

from math import prod
from typing import Any

from edgepress.targets.nouns import KernelReport

_NOT_COMPUTE = """
    Broadcast Concatenation Const Convert CumSum FakeQuantize Gather GatherElements GatherND Input MemoryInput MemoryOutput NonZero
    OneHot Output Pad Range Reorder Reshape ScatterElementsUpdate ScatterNDUpdate ScatterUpdate Select ShapeOf Split StridedSlice
    Tile Transpose
"""
#: Layer types that move, convert or describe values: not counted as compute.
NOT_COMPUTE = frozenset(_NOT_COMPUTE.split())

#: Operations of the saved model that only round or convert; a fused layer made of these alone is no compute op.
ROUNDING = frozenset(["FakeQuantize", "Convert", "QuantizeLinear", "Constant", "Reshape"])

#: Layer types that hold products whose count is not derived here.
OPAQUE = frozenset(["LSTMCell", "LSTMSeq", "GRUCell", "GRUSeq", "RNNCell", "RNNSeq", "TensorIterator", "Loop", "LLMMLP", "QKVProjection"])

#: Layer type -> the operations it is made of, of which a layer has one.
_OPERATIONS = {
    "Convolution": ("Convolution", "GroupConvolution"),
    "Deconvolution": ("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    "FullyConnected": ("MatMul",),
    "MatMul": ("MatMul",),
    "ScaledDotProductAttention": ("ScaledDotProductAttention",),
}
#: What the plugin adds to the name of an operation whose integers it scales afterwards.
_SCALED = "/DequantizationMultiply"
#: Last part of a kernel's name (`brgconv_avx2_f32`, `jit_avx2_I8`) -> the type it computes in.
KERNELS = {"I8": "int8", "f32": "fp32", "FP32": "fp32", "f16": "fp16", "FP16": "fp16", "bf16": "fp16", "BF16": "fp16"}
#: A layer's `runtimePrecision`, which may be that of its weights alone; read where the kernel's name says nothing.
PRECISIONS = {"u8": "int8", "i8": "int8", "u4": "int8", "i4": "int8", "f16": "fp16", "bf16": "fp16", "f32": "fp32"}
INDEX_PRECISIONS = frozenset(["i32", "i64", "boolean", "u1"])


def kernel_report(runtime_model: Any, model: Any, source: str) -> KernelReport:
    """Count executed compute layers by precision.

    Args:
        runtime_model: `CompiledModel.get_runtime_model()` of the model that is executed.
        model: the same model with a static batch of 1, to look fused operations up by name.
        source: for the report.
    """
    operations = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    ops, macs, known = [], {"int8": 0, "float": 0}, True
    for layer in runtime_model.get_ordered_ops():
        kind, precision = _info(layer, "layerType"), _info(layer, "runtimePrecision")
        names = _info(layer, "originalLayersNames").split(",")
        fused = [operations[name] for name in names if name in operations]
        scaled = [
            operations[name.removesuffix(_SCALED)] for name in names if name.endswith(_SCALED) and name.removesuffix(_SCALED) in operations
        ]
        if kind in NOT_COMPUTE or precision in INDEX_PRECISIONS or _only_rounds(kind, fused):
            continue
        type_name = KERNELS.get(_info(layer, "primitiveType").rpartition("_")[2]) or PRECISIONS.get(precision, "unknown")
        count = layer_macs(kind, layer, fused, scaled)
        known = known and count is not None
        macs["int8" if type_name == "int8" else "float"] += count or 0
        line = {"op": kind, "name": layer.get_friendly_name(), "type": type_name}
        ops.append({**line, "macs": count} if count else line)
    total = macs["int8"] + macs["float"]
    counts = {name: sum(op["type"] == name for op in ops) for name in ("int8", "fp16", "fp32", "unknown")}
    return KernelReport(**counts, int8_macs_share=macs["int8"] / total if known and total else None, source=source, ops=tuple(ops))


def _info(layer: Any, key: str) -> str:
    info = layer.get_rt_info()
    if key not in info:
        return ""
    value = info[key]
    return str(value if isinstance(value, str) else value.astype(str))


def _only_rounds(kind: str, fused: list[Any]) -> bool:
    return kind in ("Subgraph", "Eltwise") and bool(fused) and all(op.get_type_name() in ROUNDING for op in fused)


def layer_macs(kind: str, layer: Any, fused: list[Any], scaled: list[Any]) -> int | None:
    """Multiply-accumulates of one executed layer; 0 where it has none, None where they cannot be told.

    Weights of a convolution are (O, I, …) or (groups, O / groups, I, …); K of a matrix product follows from the size of
    its left operand, however that is transposed.

    Args:
        kind: its type.
        layer: of the execution graph.
        fused: the operations it stands for, of a model with static shapes; their shapes count where there is one of its type.
        scaled: those it stands for under the name of their scaling.
    """
    if kind in OPAQUE:
        return None
    same = [op for op in (*fused, *scaled) if op.get_type_name() in _OPERATIONS.get(kind, ())]
    shaped = same[0] if same else layer
    inputs = [_dimensions(port.get_partial_shape()) for port in shaped.inputs()]
    outputs = [_dimensions(port.get_partial_shape()) for port in shaped.outputs()]
    if kind in ("Convolution", "Deconvolution"):
        source, weight, result = inputs[0], inputs[1], outputs[0]
        if not (source and weight and result):
            return None
        grouped = len(weight) > len(source)
        if kind == "Deconvolution":
            return prod(source) * prod(weight) // (weight[0] * (weight[1] if grouped else 1))
        return prod(result) * prod(weight) // (weight[0] * (weight[1] if grouped else 1))
    if kind in ("FullyConnected", "MatMul"):
        return _product(inputs[0], outputs[0], last=kind == "FullyConnected" and shaped is layer)
    if kind == "ScaledDotProductAttention":
        query, key, result = inputs[0], inputs[1], outputs[0]
        return None if not (query and key and result) else (prod(query) + prod(result)) * key[-2]
    if kind == "Subgraph":  # snippets may take whole attention blocks in
        parts = [op for op in fused if op.get_type_name() == "MatMul"]
        counts = [
            _product(_dimensions(op.get_input_partial_shape(0)), _dimensions(op.get_output_partial_shape(0)), last=False) for op in parts
        ]
        return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)
    return 0


def _product(left: list[int], result: list[int], *, last: bool) -> int | None:
    if not left or not result:
        return None
    depth = left[-1] if last or len(left) < 2 or len(result) < 2 else prod(left[-2:]) // result[-2]
    return prod(result) * depth


def _dimensions(shape: Any) -> list[int]:
    """The dimensions of a shape of which the batch at most, 1 here, is not a number; [] for any other."""
    if shape.rank.is_dynamic:
        return []
    sizes = [dimension.get_length() if dimension.is_static else None for dimension in shape]
    return [size or 1 for size in sizes] if sizes.count(None) <= 1 else []


def expose_layers(model: Any) -> dict[int, str]:
    """Make the float result of every op that computes from activations an output; returns output index -> tensor name."""
    skipped = ("Parameter", "Result", "Constant", "Convert", "ShapeOf", "FakeQuantize")
    ports = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in skipped or op.get_output_size() != 1 or not op.get_output_element_type(0).is_real():
            continue
        if op.get_output_partial_shape(0).rank.is_static and op.get_output_partial_shape(0).is_dynamic:  # holds the batch
            ports.append(op.output(0))
    added = model.add_outputs(ports)
    first = len(model.outputs) - len(added)
    return {first + i: _tensor_name(port) for i, port in enumerate(ports)}


def _tensor_name(port: Any) -> str:
    names = sorted(port.get_names())
    return str(names[0] if names else port.get_node().get_friendly_name())
