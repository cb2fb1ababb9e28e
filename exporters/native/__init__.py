"""Each runtime's own quantizer, as a candidate beside edgepress's renderings (`method: best`): one module per runtime."""

from __future__ import annotations

from edgepress.exporters.native.base import NativeQuantizer
from edgepress.targets.registry import Registry

NATIVE = Registry(
    "edgepress.native_quantizers",
    {
        "onnxruntime.quantization": "edgepress.exporters.native.onnxruntime:OnnxRuntimeQuantizer",
        "onnxruntime.quantization, reduce_range": "edgepress.exporters.native.onnxruntime:ReducedRangeQuantizer",
        "nncf": "edgepress.exporters.native.openvino:NncfQuantizer",
        "nncf, transformer": "edgepress.exporters.native.openvino:NncfTransformerQuantizer",
        "ai-edge-quantizer": "edgepress.exporters.native.litert:AiEdgeQuantizer",
        "modelopt": "edgepress.exporters.native.tensorrt:ModelOptQuantizer",
        "modelopt, max": "edgepress.exporters.native.tensorrt:ModelOptMaxQuantizer",
        "coremltools.optimize": "edgepress.exporters.native.coreml:CoreMlQuantizer",
    },
)


def native_quantizers(runtime: str) -> dict[str, NativeQuantizer]:
    """The quantizers whose files `runtime` loads, by name, installed or not."""
    every = {name: NATIVE.get(name)() for name in NATIVE.table()}
    return {name: quantizer for name, quantizer in every.items() if quantizer.runtime == runtime}
