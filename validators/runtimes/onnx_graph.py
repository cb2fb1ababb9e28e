"""Reading ONNX graphs: the type each compute op runs in, its multiply-accumulates, its intermediate tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.nouns import KernelReport, Signature

_NOT_COMPUTE = """
    And Cast CastLike Compress Concat Constant ConstantOfShape CopyFromHost CopyToHost DepthToSpace DequantizeLinear
    DynamicQuantizeLinear Equal Expand EyeLike Flatten Gather GatherElements GatherND Greater GreaterOrEqual Identity If IsInf IsNaN
    Less LessOrEqual Loop MemcpyFromHost MemcpyToHost NonZero Not OneHot Or Pad QLinearConcat QuantizeLinear QuickReshape Range
    ReorderInput ReorderOutput Reshape Scan ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose
    Trilu Unsqueeze Where
"""
_INTEGER_OPS = """
    ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulInteger MatMulInteger16 MatMulIntegerToFloat QAttention
    QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMatMul
    QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QMoE
"""
_PRODUCTS = """
    DynamicQuantizeMatMul FusedGemm FusedMatMul Gemm MatMul MatMulInteger MatMulIntegerToFloat MatMulNBits QGemm QLinearMatMul
    TransposeMatMul
"""
_RECURRENT = "DynamicQuantizeLSTM GRU LSTM RNN"
_OPAQUE = "Attention Einsum GroupQueryAttention MultiHeadAttention QAttention"

#: Ops that move, select, convert or describe values: not counted as compute.
NOT_COMPUTE = frozenset(_NOT_COMPUTE.split())

#: Ops of onnxruntime that compute in integers whatever the type of their output.
INTEGER_OPS = frozenset(_INTEGER_OPS.split())

#: Matrix products whose first input is the left operand.
PRODUCTS = frozenset(_PRODUCTS.split())

#: Ops over time steps, (steps, batch, features), whose inputs 1 and 2 are weights.
RECURRENT = frozenset(_RECURRENT.split())

#: Ops that hold products whose count is not derived here: the share of integer MACs is then unknown.
OPAQUE = frozenset(_OPAQUE.split())

#: Op -> (position of the activation, position of the weight) for convolutions.
CONVOLUTIONS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "FusedConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}


@dataclass(frozen=True)
class Tensor:
    """What one run on zeros shows of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def kernel_report(path: Path, signature: Signature, source: str) -> KernelReport:
    """Count the compute ops of an optimized graph by the type they run in.

    Args:
        path: a graph onnxruntime saved through `optimized_model_filepath`.
        signature: its inputs, from which one sample of zeros is made.
        source: where the graph came from, for the report.
    """
    import onnx

    model = onnx.load(str(path))
    nodes = [node for node in model.graph.node if node.op_type not in NOT_COMPUTE]
    tensors = _observe(model, signature, path.with_name("observed.onnx"))
    ops, macs = [], {"int8": 0, "float": 0}
    known = bool(tensors) and not any(node.op_type in OPAQUE for node in nodes)
    for node in nodes:
        kind = op_type_name(node, tensors)
        if kind is None:
            continue
        count = op_macs(node, tensors) if known else 0
        macs["int8" if kind == "int8" else "float"] += count
        line = {"op": node.op_type, "name": node.name, "type": kind}
        ops.append({**line, "macs": count} if count else line)
    total = macs["int8"] + macs["float"]
    counts = {kind: sum(op["type"] == kind for op in ops) for kind in ("int8", "fp16", "fp32", "unknown")}
    return KernelReport(**counts, int8_macs_share=macs["int8"] / total if known and total else None, source=source, ops=tuple(ops))


def op_type_name(node: Any, tensors: dict[str, Tensor]) -> str | None:
    """`int8`, `fp16`, `fp32` or `unknown`; None where the op computes indices or flags and not values."""
    if node.op_type in INTEGER_OPS or (node.op_type == "MatMulNBits" and _attribute(node, "accuracy_level", 0) == 4):
        return "int8"
    outputs = [tensors[name].dtype for name in node.output if name in tensors]
    if not outputs:
        return "unknown"
    names = {np.dtype("float32"): "fp32", np.dtype("float16"): "fp16", np.dtype("int8"): "int8", np.dtype("uint8"): "int8"}
    return names.get(outputs[0])


def op_macs(node: Any, tensors: dict[str, Tensor]) -> int:
    """Multiply-accumulates of one convolution, matrix product or recurrent op at batch 1; 0 for every other op.

    A convolution makes one output of `O` channels from `weights / O` products each; a product of (…, M, K) and
    (…, K, N) costs the size of its output times K; a recurrent op each of its weights once a step.
    """
    if node.op_type in RECURRENT:
        source, *weights = (tensors.get(name) for name in node.input[:3])
        return 0 if source is None else source.shape[0] * sum(prod(weight.shape) for weight in weights if weight is not None)
    if node.op_type in CONVOLUTIONS:
        source, weight = (tensors.get(node.input[i]) for i in CONVOLUTIONS[node.op_type])
        result = tensors.get(node.output[0])
        if source is None or weight is None or result is None:
            return 0
        if node.op_type == "ConvTranspose":
            return prod(source.shape) * prod(weight.shape) // weight.shape[0]
        return prod(result.shape) * prod(weight.shape) // weight.shape[0]
    if node.op_type in PRODUCTS:
        left, result = tensors.get(node.input[0]), tensors.get(node.output[0])
        if left is None or result is None:
            return 0
        transposed = len(left.shape) > 1 and _attribute(node, "transA", 0)
        return prod(result.shape) * left.shape[-2 if transposed else -1]
    return 0


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _observe(model: Any, signature: Signature, path: Path) -> dict[str, Tensor]:
    """Types and shapes of every tensor that compute ops read or write, from one run at batch 1 on zeros; {} where it fails."""
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    tensors = {t.name: Tensor(onnx.helper.tensor_dtype_to_np_dtype(t.data_type), tuple(t.dims)) for t in model.graph.initializer}
    feeds = {s.name: np.zeros([1 if d is None else d for d in s.shape], s.dtype) for s in signature.inputs}
    tensors |= {name: Tensor(value.dtype, value.shape) for name, value in feeds.items()}
    wanted = [n for node in model.graph.node if node.op_type not in NOT_COMPUTE for n in (*node.input, *node.output)]
    produced = {name for node in model.graph.node for name in node.output if name}
    names = [name for name in dict.fromkeys(wanted) if name in produced]
    if not names:
        return tensors
    _expose(model, names)
    onnx.save(model, str(path))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        values = session.run(names, feeds)
    except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException):
        return {}  # an optimized graph need not load again (blocked layouts): types are then unknown and said so
    tensors |= {name: Tensor(value.dtype, value.shape) for name, value in zip(names, values, strict=True) if value is not None}
    return tensors


def _expose(model: Any, names: list[str]) -> None:
    """Make tensors outputs of the graph; onnxruntime infers their types itself."""
    import onnx

    have = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)


def expose_compute_outputs(source: Path, destination: Path) -> list[str]:
    """Write a copy of a model whose compute ops' results are outputs too; returns all output names in order."""
    import onnx

    model = onnx.load(str(source))
    names = [name for node in model.graph.node if node.op_type not in NOT_COMPUTE for name in node.output if name]
    _expose(model, names)
    onnx.save(model, str(destination))
    return [output.name for output in model.graph.output]
