"""onnxruntime's dynamic int8: int8 weights per channel, ranges of what they multiply taken at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from edgepress.compress.quantize.complex_parts import CONSTANTS, TRANSFORM
from edgepress.compress.quantize.magnified import REASON
from edgepress.compress.quantize.saturation import Guard, Pairs
from edgepress.exporters.onnx_passes import write
from edgepress.targets.errors import QuantizationError

#: Ops whose weights onnxruntime multiplies in integers when activation ranges are taken at run time, and the lookup
#: tables it keeps in 8 bits. Convolutions are left out: ConvInteger runs slower than the float kernel.
DYNAMIC_OPS = ("MatMul", "Gemm", "Gather")

#: Ops that multiply and accumulate, for the list of what stayed in float.
HEAVY_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN")

#: Ops behind which a small value is still a small one.
_BETWEEN = frozenset({"Abs", "Add", "Clip", "Div", "Max", "Mul", "Pow", "Relu", "Reshape", "Slice", "Sub", "Transpose", "Unsqueeze"})

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny

#: Op that multiplies integers -> places of its weights among its inputs, and of their scales.
_PRODUCTS = {"MatMulInteger": ((1, None),), "DynamicQuantizeLSTM": ((1, 8), (2, 10))}


def quantize_dynamic(path: Path, weight_bits: int = 0) -> tuple[Mapping[str, Any], ...]:
    """Quantize matrix products and lookup tables dynamically, in place.

    Args:
        path: of the file.
        weight_bits: see `Scheme`.

    Returns:
        Heavy ops that stay in float, with the reason.
    """
    model = quantized(path, DYNAMIC_OPS, weight_bits)
    write(model, path)
    kept = _magnified(model.graph)
    left = [node for node in model.graph.node if node.op_type in HEAVY_OPS]
    heavy = Counter((node.op_type, kept.get(node.name) or _reason(node.op_type)) for node in left)
    return tuple({"op": f"onnx.{op}", "count": count, "reason": reason} for (op, reason), count in sorted(heavy.items()))


def quantized(path: Path, ops: Collection[str], weight_bits: int) -> Any:
    """The model of a file with some of its ops in integers.

    Args:
        path: of the file.
        ops: that onnxruntime's quantizer turns into integer ones.
        weight_bits: 8 uses all integers, 7 half of them, 0 those whose sums are exact on every CPU (`saturation.py`).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def made(narrow: bool) -> Any:
        with TemporaryDirectory(dir=path.parent) as scratch:
            file = Path(scratch) / path.name
            settings = {"op_types_to_quantize": list(ops), "nodes_to_exclude": list(excluded), "reduce_range": narrow}
            quantize_dynamic(path, file, per_channel=True, weight_type=QuantType.QInt8, **settings)
            return onnx.load(file)

    excluded = _magnified(onnx.load(path, load_external_data=False).graph)
    model = made(narrow=weight_bits == 7)
    if weight_bits:
        return model
    return model if _guard(model, onnx.load(path)) else made(narrow=True)


def _magnified(graph: Any) -> dict[str, str]:
    """Names of products that are Fourier transforms, or whose logarithm or root is taken, with the reason: see `magnified.py`."""
    makers = {name: node for node in graph.node for name in node.output}
    found = {node.name: TRANSFORM for node in graph.node if any(name.startswith(f"{CONSTANTS}_") for name in node.input)}
    waiting, seen = [node.input[0] for node in graph.node if node.op_type in ("Log", "Sqrt")], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in ("MatMul", "Gemm"):
            found.setdefault(node.name, REASON)
        elif node.op_type in _BETWEEN:
            waiting += node.input
    return found


def _guard(model: Any, original: Any) -> bool:
    """Round the weights of integer products again, in place, so that no sum saturates; False where one of them is no matrix.

    Args:
        model: as onnxruntime's quantizer made it, with 8 bits.
        original: what it was made of.
    """
    import onnx

    before = {tensor.name: tensor for tensor in original.graph.initializer}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for place, scale_place in _PRODUCTS.get(node.op_type, ()):
            weight = node.input[place]
            if weight in before:
                continue  # in integers before
            name = weight.removesuffix("_quantized")
            source = before.get(name, before.get(name.removesuffix("_Transposed")))
            scale = tensors.get(f"{name}_scale" if scale_place is None else node.input[scale_place])
            if source is None or scale is None or weight not in tensors:
                return False
            stored = onnx.numpy_helper.to_array(tensors[weight])
            rows = _rows(onnx.numpy_helper.to_array(source), stored.shape, turned=source.name == name and node.op_type == "MatMulInteger")
            if rows is None:
                return False
            grid = Guard(Pairs(inputs=1, flattened=True)).grid(torch.from_numpy(rows.copy()), 0, torch.tensor(_SMALLEST_SCALE))
            integers = (grid.nearest / grid.scale).round().to(torch.int8).numpy()
            whole = integers.reshape(*stored.shape[:-2], stored.shape[-1], stored.shape[-2]).swapaxes(-1, -2)
            tensors[weight].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(whole), weight))
            scale.CopyFrom(onnx.numpy_helper.from_array(grid.scale.numpy().reshape(tuple(scale.dims)), scale.name))
    return True


def _rows(weight: np.ndarray, stored: tuple[int, ...], turned: bool) -> np.ndarray | None:
    """A weight as (outputs, inputs), that of all directions of an LSTM one after the other.

    Args:
        weight: (outputs, inputs), or (directions, outputs, inputs) of an LSTM.
        stored: the shape of its integers, (inputs, outputs), or (directions, inputs, outputs).
        turned: `weight` is (inputs, outputs).
    """
    if weight.ndim > 3 or (turned and weight.ndim > 2):
        return None
    weight = weight.T if turned else weight
    return weight.reshape(-1, weight.shape[-1]) if weight.shape[-1] == stored[-2] else None


def check_dynamic(path: Path) -> None:
    """Refuse a dynamically quantized file in which nothing was.

    Raises:
        QuantizationError: no weight is in integers.
    """
    import onnx

    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    if not any(tensor.data_type in integers for tensor in onnx.load(path, load_external_data=False).graph.initializer):
        raise QuantizationError(
            "dynamic int8 would leave the whole model in float",
            "it has no linear layer, lookup or LSTM with constant weights",
            "Ask for the scheme static or weights, or for precision fp32.",
        )


def _reason(op: str) -> str:
    if op in ("MatMul", "Gemm"):
        return "no constant weight: a product of two activations has no dynamic integer kernel"
    if op.startswith("Conv"):
        return "the integer convolution with run-time ranges is slower than the float one"
    return "no dynamic integer kernel was asked for"
