"""TensorRT: an engine per GPU generation, the ONNX they were built from, and the command that builds them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters import onnx_bf16, onnx_passes
from edgepress.exporters import tensorrt_build as build
from edgepress.exporters.base import Exporter, ExportRequest
from edgepress.exporters.onnx import check_batch, lower_request, missing_packages, request_opset
from edgepress.exporters.onnx_bf16 import BF16_OPSET
from edgepress.exporters.onnx_fp8 import FP8_OPSET
from edgepress.targets.errors import ConfigError, ExportError
from edgepress.targets.nouns import Artifact, Support

#: Ampere and Ada desktop and workstation GPUs.
DEFAULT_CAPABILITIES = ("8.6", "8.9")

#: Precision -> the first GPUs with its kernels, and the first opset that has the type.
FIRST_WITH = {"fp8": ((8, 9), FP8_OPSET), "bf16": ((8, 0), BF16_OPSET)}

#: The artifact, and the graph in it that engines are built from.
FOLDER, FILE = "model", "model.onnx"

_QUANTIZE_OPS = ("QuantizeLinear", "DequantizeLinear")


class TensorRtExporter(Exporter):
    """A folder `model/`: `model.onnx`, `sm86.engine` (one per compute capability), `rebuild.sh`; in bf16 `replay.onnx` for CPUs too."""

    runtime = "tensorrt"

    def supports(self) -> Support:
        """TensorRT-RTX on any machine, or TensorRT beside a GPU; and onnx, onnxscript, onnxruntime for the graph."""
        missing = missing_packages("onnx", "onnxscript", "onnxruntime")
        rtx, full = build.installed("tensorrt-rtx"), build.installed("tensorrt")
        if rtx is None and (full is None or build.gpu_capability() is None):
            missing.append("tensorrt-rtx-cu13-bindings")
        if missing:
            return Support(False, None, f"{', '.join(missing)} not installed", "pip install 'edgepress[tensorrt]'")
        return Support(True, f"tensorrt {full}" if full and build.gpu_capability() else f"tensorrt-rtx {rtx}")

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        if request.scheme.kind not in ("float", "fp8", *self.rules.ladder):
            raise ExportError(
                f"target {request.target.name!r} has no {request.scheme.label}",
                "TensorRT takes activation ranges from calibration, never at run time",
                f"Use one of {', '.join(self.rules.ladder)}.",
            )
        precision, options = request.scheme.precision, request.target.options
        opset = max(request_opset(options), 0 if "opset" in options else FIRST_WITH.get(precision, (None, 0))[1])
        capabilities = with_kernels(precision, requested_capabilities(options), "compute_capability" in options, opset)
        for capability in capabilities:
            build.library_for(capability)  # one that cannot be built for is refused before the slow part
        model = folder / FOLDER / FILE
        model.parent.mkdir(parents=True, exist_ok=True)
        float_ops = lower_request(self, request, model, opset=opset)
        runs = model
        if precision == "fp16":
            onnx_passes.convert_to_fp16(model)
        if precision == "bf16":
            runs = onnx_bf16.convert_to_bf16(model)
        check_batch(runs, request)
        samples = {spec.name: array for spec, array in zip(request.signature.inputs, request.samples, strict=True)}
        sizes = build.BatchRange.of(request.signature.only_batch, request.target.batch)
        facts = {"format": "engine", "opset": opset, **write_engines(model, samples, sizes, capabilities)}
        return Artifact(FOLDER, request.target.name, request.scheme, request.signature, facts, float_ops)

    def remedy(self, error: Exception) -> str:
        """TensorRT reads ONNX: what helps is another formulation of the op, or another opset."""
        return "Rewrite the op the message names, try another `opset`, or take this target out of `targets:`."


def write_engines(model: Path, samples: Mapping[str, np.ndarray], sizes: build.BatchRange, capabilities: list[str]) -> dict[str, Any]:
    """Write one engine per capability and `rebuild.sh` beside an ONNX file.

    Args:
        samples: every input by name, of shape (samples, ...).
        sizes: the batches that engines take.

    Returns:
        The facts of the artifact that depend on its engines.

    Raises:
        ExportError: Q/DQ that TensorRT reads as something else, or no engine can be built.
    """
    check_quantization(model)
    shapes = {name: tuple(int(size) for size in array.shape[1:]) for name, array in samples.items()}
    engines, warnings, largest = [], dict[str, None](), 0
    for capability in capabilities:
        engine = build.build_engine(model, shapes, sizes, capability)
        name = engine_name(capability)
        largest = max(largest, (model.parent / name).write_bytes(engine.plan))
        engines.append({"file": name, "compute_capability": capability, "library": engine.library, "version": engine.version})
        warnings |= dict.fromkeys(engine.warnings)
    commands = {c: rebuild_command(c, shapes, sizes) for c in capabilities}
    script = model.parent / "rebuild.sh"
    script.write_text(_rebuild_script(list(commands.values()), _flags(shapes, sizes)))
    script.chmod(0o755)
    return {
        "compute_capabilities": capabilities,
        "engines": engines,
        "runtime_minimum": " or ".join(dict.fromkeys(f"{e['library']} {e['version']}" for e in engines)),
        "max_batch": sizes.largest,
        "device_bytes": largest,
        "rebuild": commands[capabilities[0]],
        "builder_warnings": list(warnings),
    }


def requested_capabilities(options: Mapping[str, Any]) -> list[str]:
    """The `compute_capability` option as `["8.6", …]`; `"8.6"`, `8.6`, `"86"` and `"sm86"` are the same.

    Raises:
        ConfigError: it is empty, or an entry is not a compute capability.
    """
    wanted = options.get("compute_capability", DEFAULT_CAPABILITIES)
    entries = wanted if isinstance(wanted, list | tuple) else [wanted]
    if not entries:
        raise ConfigError("compute_capability is empty", "", "Name at least one, e.g. ['8.6'], or leave the key out.")
    return list(dict.fromkeys(_capability(entry) for entry in entries))


def with_kernels(precision: str, capabilities: list[str], named: bool, opset: int) -> list[str]:
    """Those whose GPUs have kernels for a precision.

    Raises:
        ConfigError: one that was named has none, or the opset has no such type.
    """
    if precision not in FIRST_WITH:
        return capabilities
    first, first_opset = FIRST_WITH[precision]
    if opset < first_opset:
        raise ConfigError(f"opset {opset} has too few operators in {precision}", "", f"Use {first_opset} or later, or leave `opset` out.")
    older = [capability for capability in capabilities if tuple(map(int, capability.split("."))) < first]
    if older and named:
        least = ".".join(map(str, first))
        raise ConfigError(
            f"compute capability {older[0]} has no kernels for precision {precision}",
            f"GPUs have them from {least} on",
            f"Name {least} or later alone, or use precision int8.",
        )
    return [capability for capability in capabilities if capability not in older]


def _capability(entry: object) -> str:
    digits = str(entry).lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if isinstance(entry, bool) or not digits.isascii() or not digits.isdigit() or not 2 <= len(digits) <= 3:
        raise ConfigError(f"compute_capability {entry!r} is not one", "", "Write it as in '8.6'.")
    return f"{digits[:-1]}.{digits[-1]}"


def engine_name(capability: str) -> str:
    """The engine's file name, e.g. `sm86.engine`."""
    return f"sm{capability.replace('.', '')}.engine"


def rebuild_command(capability: str, shapes: Mapping[str, tuple[int, ...]], batch: build.BatchRange) -> str:
    """The command line of TensorRT-RTX's own tool that builds this engine from `model.onnx`."""
    number = capability.replace(".", "")
    return f"tensorrt_rtx --onnx=model.onnx --saveEngine={engine_name(capability)} --computeCapabilities={number} {_flags(shapes, batch)}"


def _flags(shapes: Mapping[str, tuple[int, ...]], batch: build.BatchRange) -> str:
    def shape_flag(kind: str, size: int) -> str:
        text = ",".join(f"{name}:{'x'.join(map(str, (size, *shape)))}" for name, shape in shapes.items())
        return shlex.quote(f"--{kind}Shapes={text}")

    shapes_taken = [shape_flag("min", batch.smallest), shape_flag("opt", batch.tuned), shape_flag("max", batch.largest)]
    return " ".join(
        [*(shapes_taken if batch.smallest < batch.largest else []), "--skipInference"]
    )  # the tool refuses shapes that are fixed


def _rebuild_script(commands: list[str], flags: str) -> str:
    lines = [
        "#!/bin/sh",
        "# Builds the engines again from model.onnx: with TensorRT-RTX's tool for every GPU generation named here (no GPU needed),",
        "# or with TensorRT's trtexec for the GPU of this machine. An engine runs only with the library, and version, that built it.",
        'set -eu\ncd "$(dirname "$0")"',
        "if command -v tensorrt_rtx >/dev/null; then",
        *(f"    {command}" for command in commands),
        "else",
        f"    trtexec --onnx=model.onnx --saveEngine=tensorrt.engine --stronglyTyped {flags}",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def check_quantization(model: Path) -> None:
    """Refuse Q/DQ that TensorRT would read as something else: it warns about uint8 and then computes in int8.

    Raises:
        ExportError: a zero point is not int8, or not zero.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type not in _QUANTIZE_OPS or len(node.input) < 3 or node.input[2] not in constants:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]])
        if zero.dtype.name != "float8_e4m3fn" and (zero.dtype != np.int8 or zero.any()):
            raise ExportError(
                f"{node.op_type} {node.name!r} has the zero point {zero.ravel()[:1].tolist()} of type {zero.dtype}",
                "TensorRT takes int8 with zero point 0",
                "Quantize with the rules of 'tensorrt'.",
            )
