"""The devices edgepress ships for: a name users write in `targets:`, and the runtime behind it."""

from __future__ import annotations

from dataclasses import dataclass

from edgepress.targets.registry import Registry


@dataclass(frozen=True)
class CatalogEntry:
    """One line of `edgepress targets`.

    Attributes:
        name: what the recipe says.
        runtime: key of rules, exporter and runtime.
        device: what it is for, in words.
        file: what is shipped, e.g. `.onnx`.
        precision: used where the recipe names none.
        options: names of the options its exporter reads, each with its meaning.
    """

    name: str
    runtime: str
    device: str
    file: str
    precision: str = "int8"
    options: tuple[tuple[str, str], ...] = ()


ONNXRUNTIME = CatalogEntry("onnxruntime", "onnxruntime", "x86-64 or Arm CPU", ".onnx", options=(("opset", "ONNX opset, 18 to 23"),))
OPENVINO = CatalogEntry("openvino", "openvino", "Intel or AMD x86-64 CPU", ".xml + .bin")
TENSORRT = CatalogEntry(
    "tensorrt",
    "tensorrt",
    "NVIDIA GPU",
    ".engine + .onnx",
    options=(("compute_capability", "list of SM versions to build for, e.g. ['8.6', '8.9']"),),
)
COREML = CatalogEntry("coreml", "coreml", "Apple device", ".mlpackage", options=(("minimum_os", "iOS15 … iOS18, macOS12 … macOS15"),))
TFLITE = CatalogEntry("tflite", "litert", "Android or embedded Linux CPU", ".tflite", options=(("io", "float or int8 inputs and outputs"),))

CATALOG = Registry(
    "edgepress.targets",
    {name: f"edgepress.targets.catalog:{name.upper()}" for name in ("onnxruntime", "openvino", "tensorrt", "coreml", "tflite")},
)
