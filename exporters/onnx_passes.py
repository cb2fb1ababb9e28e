"""Rewrites of a finished ONNX file: half precision, and onnxruntime's dynamic int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: Ops whose weights onnxruntime multiplies in integers when activation ranges are taken at run time, and the lookup
#: tables it keeps in 8 bits. Convolutions are left out: ConvInteger runs slower than the float kernel.
DYNAMIC_OPS = ("MatMul", "Gemm", "Gather")

#: Ops that multiply and accumulate, for the list of what stayed in float.
HEAVY_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN")


def convert_to_fp16(path: Path) -> None:
    """Store and compute in float16 in place; inputs and outputs of the model stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    write(model, path)


def quantize_dynamic(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Quantize matrix products dynamically, in place: int8 weights per channel, activation ranges taken at run time.

    Weights keep to 7 bits, because x86 without VNNI adds two 8-bit products in 16 bits, which saturate.

    Returns:
        Heavy ops that stay in float, with the reason.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with TemporaryDirectory(dir=path.parent) as scratch:
        quantized = Path(scratch) / path.name
        quantize(path, quantized, op_types_to_quantize=list(DYNAMIC_OPS), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        model = onnx.load(quantized)
    write(model, path)
    return tuple({"op": f"onnx.{op}", "count": count, "reason": _reason(op)} for op, count in sorted(_heavy(model).items()))


def _heavy(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type in HEAVY_OPS)


def _reason(op: str) -> str:
    if op in ("MatMul", "Gemm"):
        return "no constant weight: a product of two activations has no dynamic integer kernel"
    if op.startswith("Conv"):
        return "the integer convolution with run-time ranges is slower than the float one"
    return "no dynamic integer kernel was asked for"


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
