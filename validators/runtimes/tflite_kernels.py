"""Which arithmetic the ops of a loaded .tflite file use, from the interpreter's own list of ops and tensor types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgepress.targets.nouns import KernelReport

#: Ops that move, look up or convert values; they compute nothing.
NOT_COMPUTE = frozenset(
    (
        *("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "PADV2", "MIRROR_PAD", "GATHER", "GATHER_ND", "EMBEDDING_LOOKUP"),
        *("CAST", "QUANTIZE", "DEQUANTIZE", "CONCATENATION", "SPLIT", "SPLIT_V", "PACK", "UNPACK", "EXPAND_DIMS", "SQUEEZE", "SHAPE"),
        *("BROADCAST_TO", "FILL", "RANGE", "TILE", "SELECT", "SELECT_V2", "DELEGATE", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT"),
        *("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "WHERE", "REVERSE_V2", "SPACE_TO_DEPTH", "ONE_HOT"),
    )
)
#: Ops whose kernel quantizes float activations itself when the weights are int8 (dynamic range).
_HYBRID = frozenset(["FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM"])
_INTEGERS = frozenset(["int8", "uint8", "int4", "int2"])


def kernel_report(ops: Sequence[Mapping[str, Any]], tensors: Mapping[int, Mapping[str, Any]], source: str) -> KernelReport:
    """Count the compute ops by arithmetic.

    A convolution, linear layer or matrix product with float activations and int8 weights computes in integers: its kernel
    quantizes each row of activations while it runs. (Measured with XNNPACK: the result of such a linear layer equals that
    integer product to 5e-7, and misses the float product by the rounding of the activations; a test repeats it.) Int8 weights
    that a DEQUANTIZE widens are float arithmetic. Float16 weights are widened too: LiteRT computes in float32 on CPUs unless
    told otherwise.

    Args:
        ops: `{"op_name": str, "inputs": tensor indices, "outputs": …}` of every node.
        tensors: index -> `{"name": str, "dtype": str, "shape": sizes}`.
        source: said in the report.
    """
    lines: list[dict[str, Any]] = []
    counts = {"int8": 0, "fp16": 0, "fp32": 0, "unknown": 0}
    macs = {"int8": 0, "other": 0}
    for op in ops:
        name = str(op["op_name"])
        if name in NOT_COMPUTE:
            continue
        inputs = [tensors[i] for i in op["inputs"] if i in tensors]
        outputs = [tensors[i] for i in op["outputs"] if i in tensors]
        if not outputs:
            continue
        kind = _arithmetic(name, [t["dtype"] for t in inputs], outputs[0]["dtype"])
        if kind is None:
            continue
        counts[kind] += 1
        macs["int8" if kind == "int8" else "other"] += _macs(name, inputs, outputs[0])
        lines.append({"op": name, "name": outputs[0]["name"], "type": kind})
    total = macs["int8"] + macs["other"]
    return KernelReport(**counts, int8_macs_share=macs["int8"] / total if total else None, source=source, ops=tuple(lines))


def _arithmetic(name: str, inputs: Sequence[str], output: str) -> str | None:
    """int8, fp16, fp32 or unknown; None for ops on indices and flags."""
    if output in _INTEGERS or (name in _HYBRID and any(kind in _INTEGERS for kind in inputs[:2])):
        return "int8"
    if output == "float16":
        return "fp16"
    if output == "float32":
        return "fp32"
    return None if output in ("bool", "int32", "int64") else "unknown"


def _macs(name: str, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Any]) -> int:
    """Multiply-accumulates of a convolution or matrix product; 0 for other ops. Layouts are those of the format (NHWC, OHWI)."""
    size = math.prod(int(n) for n in output["shape"])
    if len(inputs) < 2:
        return 0
    first, weight = [int(n) for n in inputs[0]["shape"]], [int(n) for n in inputs[1]["shape"]]
    if name == "FULLY_CONNECTED":
        return size * weight[-1]
    if name in ("CONV_2D", "CONV_3D"):
        return size * math.prod(weight[1:])
    if name == "DEPTHWISE_CONV_2D":
        return size * weight[1] * weight[2]
    if name == "TRANSPOSE_CONV" and len(inputs) > 2:  # (output shape, OHWI weight, input): each input value meets every weight once
        return math.prod(int(n) for n in inputs[2]["shape"]) * weight[0] * weight[1] * weight[2]
    if name == "BATCH_MATMUL":
        output_width = int(output["shape"][-1])
        depth = weight[-2] if weight[-1] == output_width else weight[-1]
        return size * (first[-1] if first[-1] in weight[-2:] else depth)
    return 0
