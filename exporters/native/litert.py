"""ai-edge-quantizer: its recipes for static and for dynamic int8, on the float .tflite file."""

from __future__ import annotations

from pathlib import Path

from edgepress.exporters.litert import FILE
from edgepress.exporters.litert_convert import quiet
from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written
from edgepress.targets.errors import ConfigError

_SIGNATURE = "serving_default"


class AiEdgeQuantizer(NativeQuantizer):
    """`static_wi8_ai8` (int8 activations, min-max ranges) and `dynamic_wi8_afp32`; weights int8 per channel, float at the boundary."""

    runtime = "litert"
    package = "ai-edge-quantizer"
    extra = "tflite"
    kinds = ("static", "dynamic")

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        if request.target.options.get("io", "float") != "float":
            raise ConfigError(f"target {request.target.name!r} asks for integer inputs and outputs", "the float file says what they are")
        with quiet():
            from ai_edge_quantizer import quantizer, recipe

            static = request.scheme.kind == "static"
            chosen = recipe.static_wi8_ai8() if static else recipe.dynamic_wi8_afp32()
            tool = quantizer.Quantizer(str(request.path), [*chosen, *map(_float, ("INPUT", "OUTPUT"))])
            statistics = tool.calibrate({_SIGNATURE: list(request.batches(1))}) if static else None
            content = bytes(tool.quantize(statistics).quantized_model)
        (folder / FILE).write_bytes(content)
        return Written((FILE,))


def _float(operation: str) -> dict[str, object]:
    """Leave one kind of operation as it is; the static recipe makes inputs and outputs of the file integers."""
    return {"regex": ".*", "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}
