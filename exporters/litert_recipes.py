"""Schemes that work on a finished float .tflite file: float16 weights, dynamic-range int8, int8 weights alone (ai-edge-quantizer)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from edgepress.exporters.litert_convert import quiet
from edgepress.exporters.litert_flatbuffer import KEPT, UNPACKED, TfliteFile
from edgepress.targets.errors import QuantizationError

_MAGNIFYING = frozenset({"LOG", "SQRT"})
#: Ops behind which a small value is still a small one.
_BETWEEN = frozenset(
    (
        *("ABS", "ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "POW", "RELU", "SQUARE", "SUB"),
        *("CONCATENATION", "EXPAND_DIMS", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"),
    )
)
_FLOAT = {"operation": "*", "algorithm_key": "no_quantize", "op_config": {}}
#: Nanoseconds that integers save of a product; that rounding a row takes, and each of its values; that a position takes behind a margin.
_SAVED, _ROW, _VALUE, _PADDED = 0.0078, 17.0, 0.2, 9.0


def requantize(model: bytes, kind: str) -> bytes:
    """Store the weights of a float file in fewer bits.

    Args:
        model: a float .tflite file.
        kind: `fp16` (weights in float16, widened when the file is loaded), `dynamic` (int8 weights per output channel, activations
            quantized per row while the op runs, where that is faster than to widen the weights) or `weights` (int8 weights, widened when
            the file is loaded).

    Returns:
        The new file; the same bytes for the same file.

    Raises:
        QuantizationError: the file has no weight that the recipe applies to.
    """
    with quiet():
        from ai_edge_quantizer import quantizer

        recipe = _recipe(kind)
        if kind != "fp16":
            file = TfliteFile(model)
            small = file.behind(_MAGNIFYING, _BETWEEN)
            slower = [each for each in file.graph.operators if kind == "dynamic" and each not in small and _is_slower(file, each)]
            kept, unpacked = _named(file, small, KEPT), _named(file, slower, UNPACKED)
            model = file.pack() if kept or unpacked else model
            recipe += [{**rule, "regex": f"^{re.escape(name)}"} for rule in _recipe("weights") for name in unpacked]
            recipe += [{**_FLOAT, "regex": f"^{re.escape(name)}"} for name in kept]
        result = bytes(quantizer.Quantizer(bytearray(model), recipe).quantize().quantized_model)
    if result == model:
        raise QuantizationError(
            f"scheme {kind!r} changed nothing in the file",
            "it has no convolution, linear layer or embedding with constant weights",
            "Ask for precision fp32.",
        )
    return result


def _named(file: TfliteFile, operators: Sequence[Any], prefix: str) -> list[str]:
    """Give what operators write names of its own, and return these."""
    names = [f"{prefix}{count};" for count, _ in enumerate(operators)]
    for operator, name in zip(operators, names, strict=True):
        file.graph.tensors[operator.outputs[0]].name = name.encode()
    return names


def _is_slower(file: TfliteFile, operator: Any) -> bool:
    """Does a kernel that rounds what it reads while it runs take longer than the float one?

    Those for one channel at a time take two to six times as long. Others round each row, or each position, by a range of its own, which
    costs as much as the products of few channels save; behind a margin, XNNPACK's convolution does so too. Nanoseconds were measured on
    single layers of 8 to 192 channels (x86-64 with AVX-512 VNNI, LiteRT 2.3).
    """
    name = file.name(operator)
    if name == "DEPTHWISE_CONV_2D":
        return True
    if name not in ("CONV_2D", "FULLY_CONNECTED"):
        return False
    inputs, weight, outputs = ([int(size) for size in file.graph.tensors[i].shape] for i in (*operator.inputs[:2], operator.outputs[0]))
    saved, read = _SAVED * math.prod(weight), weight[-1]
    if name == "FULLY_CONNECTED" or weight[1:3] == [1, 1]:
        return saved < _ROW + _VALUE * read
    maker = file.maker(operator.inputs[0])
    padded = maker is not None and file.name(maker) == "PAD"
    return padded and saved * math.prod(outputs[1:3]) < _PADDED * math.prod(inputs[1:3])


def _recipe(kind: str) -> Any:
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe, recipe_manager

    if kind == "dynamic":
        return recipe.dynamic_wi8_afp32()
    if kind == "weights":
        return recipe.weight_only_wi8_afp32()
    manager = recipe_manager.RecipeManager()
    manager.add_quantization_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()
