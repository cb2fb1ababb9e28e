"""Schemes that work on a finished float .tflite file: float16 weights, dynamic-range int8, int8 weights alone (ai-edge-quantizer)."""

from __future__ import annotations

import re
from typing import Any

from edgepress.exporters.litert_convert import quiet
from edgepress.exporters.litert_flatbuffer import KEPT, TfliteFile
from edgepress.targets.errors import QuantizationError

_MAGNIFYING = frozenset({"LOG", "SQRT"})
#: Ops behind which a small value is still a small one.
_BETWEEN = frozenset(
    (
        *("ABS", "ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "POW", "RELU", "SQUARE", "SUB"),
        *("CONCATENATION", "EXPAND_DIMS", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"),
    )
)


def requantize(model: bytes, kind: str) -> bytes:
    """Store the weights of a float file in fewer bits.

    Args:
        model: a float .tflite file.
        kind: `fp16` (weights in float16, widened when the file is loaded), `dynamic` (int8 weights per output channel, activations
            quantized per row while the op runs) or `weights` (int8 weights, widened when the file is loaded).

    Returns:
        The new file; the same bytes for the same file.

    Raises:
        QuantizationError: the file has no weight that the recipe applies to.
    """
    with quiet():
        from ai_edge_quantizer import quantizer

        recipe = _recipe(kind)
        if kind != "fp16":
            model, names = _with_magnified_named(model)
            recipe += [
                {"regex": f"^{re.escape(name)}", "operation": "*", "algorithm_key": "no_quantize", "op_config": {}} for name in names
            ]
        result = bytes(quantizer.Quantizer(bytearray(model), recipe).quantize().quantized_model)
    if result == model:
        raise QuantizationError(
            f"scheme {kind!r} changed nothing in the file",
            "it has no convolution, linear layer or embedding with constant weights",
            "Ask for precision fp32.",
        )
    return result


def _with_magnified_named(model: bytes) -> tuple[bytes, list[str]]:
    """The file with names of their own for what layers write whose logarithm or root is taken (`magnified.py`), and these names."""
    file = TfliteFile(model)
    layers = file.behind(_MAGNIFYING, _BETWEEN)
    names = [f"{KEPT}{count};" for count, _ in enumerate(layers)]
    for layer, name in zip(layers, names, strict=True):
        file.graph.tensors[layer.outputs[0]].name = name.encode()
    return (file.pack() if names else model), names


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
