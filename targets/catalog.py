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
        second_runtime: a further runtime that reads the same file, used where it is installed.
        patterns: regular expressions that a value of an option (every item, of a list) matches as a whole.
        export_s: seconds that an export of a small net takes, about: where several wait for a core, the longest begins.
    """

    name: str
    runtime: str
    device: str
    file: str
    precision: str = "int8"
    options: tuple[tuple[str, str], ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()
    second_runtime: str | None = None
    export_s: float = 2.0


#: An option of runtimes whose integer kernels saturate on some CPUs.
WEIGHT_BITS = ("weight_bits", "of int8 weights: 8, whole ranges, wrong on x86 CPUs without VNNI, or 7; by default 8, right on all")

ONNXRUNTIME = CatalogEntry(
    "onnxruntime",
    "onnxruntime",
    "x86-64 or Arm CPU",
    ".onnx",
    options=(("opset", "ONNX opset, 18 to 23"), WEIGHT_BITS),
    patterns=(("opset", "18|19|20|21|22|23"), ("weight_bits", "7|8")),
)
OPENVINO = CatalogEntry(
    "openvino", "openvino", "Intel or AMD x86-64 CPU", ".xml + .bin", options=(WEIGHT_BITS,), patterns=(("weight_bits", "7|8"),)
)
TENSORRT = CatalogEntry(
    "tensorrt",
    "tensorrt",
    "NVIDIA GPU",
    ".engine + .onnx",
    options=(("compute_capability", "list of SM versions to build for, e.g. ['8.6', '8.9']"),),
    patterns=(("compute_capability", r"\d{1,2}\.\d"),),
    export_s=3.0,
)
COREML = CatalogEntry(
    "coreml",
    "coreml",
    "Apple device",
    ".mlpackage",
    options=(("minimum_os", "iOS15 … iOS18, macOS12 … macOS15"),),
    patterns=(("minimum_os", "iOS1[5678]|macOS1[2345]"),),
)
TFLITE = CatalogEntry(
    "tflite",
    "litert",
    "Android or embedded Linux CPU",
    ".tflite",
    options=(("io", "float or int8 inputs and outputs"),),
    patterns=(("io", "float|int8"),),
    second_runtime="tflite-runtime",
    export_s=4.0,
)

CATALOG = Registry(
    "edgepress.targets",
    {name: f"edgepress.targets.catalog:{name.upper()}" for name in ("onnxruntime", "openvino", "tensorrt", "coreml", "tflite")},
)
