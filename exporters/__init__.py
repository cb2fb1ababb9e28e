"""Smaller model in, file out: one module per target."""

from __future__ import annotations

from edgepress.targets.registry import Registry

EXPORTERS = Registry(
    "edgepress.exporters",
    {
        "onnxruntime": "edgepress.exporters.onnx:OnnxRuntimeExporter",
        "openvino": "edgepress.exporters.openvino:OpenVinoExporter",
        "tensorrt": "edgepress.exporters.tensorrt:TensorRtExporter",
        "coreml": "edgepress.exporters.coreml:CoreMlExporter",
        "litert": "edgepress.exporters.litert:LiteRtExporter",
    },
)
