"""One runtime per module; each opens an artifact and runs it."""

from __future__ import annotations

from edgepress.targets.registry import Registry

RUNTIMES = Registry(
    "edgepress.runtimes",
    {
        "onnxruntime": "edgepress.validators.runtimes.onnxruntime:OnnxRuntime",
        "openvino": "edgepress.validators.runtimes.openvino:OpenVino",
        "tensorrt": "edgepress.validators.runtimes.tensorrt:TensorRt",
        "coreml": "edgepress.validators.runtimes.coreml:CoreMl",
        "litert": "edgepress.validators.runtimes.litert:LiteRt",
        "tflite-runtime": "edgepress.validators.runtimes.tflite_runtime:TfliteRuntime",
    },
)
