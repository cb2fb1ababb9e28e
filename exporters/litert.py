"""LiteRT: .tflite files, float, float16, static int8, dynamic-range int8 and int8 weights."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgepress.compress.program import load_program
from edgepress.compress.quantize.unpacked import RECURRENT
from edgepress.exporters.base import Exporter, ExportRequest, first_line
from edgepress.exporters.litert_convert import sized, to_tflite
from edgepress.exporters.litert_dynamic_layers import multiply_in_integers
from edgepress.exporters.litert_flatbuffer import TfliteFile
from edgepress.exporters.litert_int4 import store_integers, with_float_weights
from edgepress.exporters.litert_integer_transposed import convolve_in_integers
from edgepress.exporters.litert_recipes import requantize
from edgepress.targets.errors import ConfigError, ExportError
from edgepress.targets.nouns import Artifact, Support

FILE = "model.tflite"
_PACKAGES = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
_STATIC = ("static", "static-matmul")
INT4 = "int4-weights"
#: Ops whose matrix products are layers of the file, one or two a step.
_STEPS = frozenset(f"aten.{name}" for name in RECURRENT)


class LiteRtExporter(Exporter):
    """Writes `model.tflite` with a fixed batch, channel order as in the model, and the model's names for inputs and outputs."""

    runtime = "litert"

    def supports(self) -> Support:
        """Needs litert-torch to convert and ai-edge-quantizer for the schemes that work on a finished file."""
        for package in _PACKAGES:
            try:
                version(package)
            except PackageNotFoundError:
                return Support(False, None, f"{package} is not installed", "pip install 'edgepress[tflite]'")
        return Support(True, version("litert-torch"))

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        io = _io(request)
        file = self._int4(request) if request.scheme.precision == INT4 else TfliteFile(self._content(request))
        at_run_time = False
        if request.scheme.kind in _STATIC:
            convolve_in_integers(file)
            at_run_time = multiply_in_integers(file)
        if io == "int8":
            file.integer_boundary()
        file.stamp_versions()
        signature, quantization = file.io_signature(request.signature, request.batch)
        content = file.pack()
        self._run_once(content, file, request)
        (folder / FILE).write_bytes(content)
        return Artifact(
            path=FILE,
            target=request.target.name,
            scheme=request.scheme,
            signature=signature,
            facts={
                "converter": f"litert-torch {version('litert-torch')}",
                "runtime_minimum": f"LiteRT or TensorFlow Lite with {_newest(file)}",
                "batch": request.batch,
                "io": io,
                **({"quantization": quantization} if quantization else {}),
            },
            float_ops=file.remaining([op for op in self.rendered(request).float_ops if not (at_run_time and op["op"] in _STEPS)])
            if request.scheme.kind in _STATIC or request.scheme.precision == INT4
            else file.float_ops(request.scheme),
        )

    def _run_once(self, content: bytes, file: TfliteFile, request: ExportRequest) -> None:
        """See that LiteRT loads and runs it: the converter writes ops too that the runtime has no kernel for.

        Raises:
            ExportError: it does not.
        """
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=content)
            interpreter.allocate_tensors()
            inputs = interpreter.get_signature_runner().get_input_details()
            for spec, sample in zip(request.signature.inputs, request.samples, strict=True):
                detail = inputs[spec.name]
                interpreter.set_tensor(detail["index"], sized(sample, request.batch).astype(detail["dtype"]))
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            found = re.search(r"opcode_index (\d+)", str(error))
            raise ExportError(
                f"target {request.target.name!r} ({request.scheme.label}): LiteRT does not run the file",
                f"it has no kernel for {file.operators()[int(found[1])][0]}" if found else first_line(error),
                self.remedy(error),
            ) from error

    def _content(self, request: ExportRequest) -> bytes:
        model, kind = self._converted(request), request.scheme.kind
        if kind in _STATIC or request.scheme.precision == "fp32":
            return model
        return requantize(model, "fp16" if kind == "float" else kind)

    def _int4(self, request: ExportRequest) -> TfliteFile:
        """The file of the floats that 4-bit weights stand for, with the integers put in their place."""
        from edgepress.compress.quantize import render_int4

        self.rendered(request)  # what the file is compared with
        module = render_int4(request.program, self.rules).module
        weights = with_float_weights(module)
        file = TfliteFile(to_tflite(module, request.signature, request.samples, request.batch, quantized=False))
        store_integers(file, weights, request.target.name)
        return file

    def _converted(self, request: ExportRequest) -> bytes:
        """The file of the rendered model for static schemes, of the float model for all others."""
        from edgepress.compress.quantize import float_module

        static = request.scheme.kind in _STATIC
        module = self.rendered(request).module if static else float_module(load_program(request.program))
        return to_tflite(module, request.signature, request.samples, request.batch, quantized=static)

    def remedy(self, error: Exception) -> str:
        """Names the torch op where the converter does."""
        found = re.search(r"Lowering not found: (\S+)", str(error))
        if found:
            return f"litert-torch has no lowering for {found[1]}: rewrite it, or take this target out of `targets:`."
        return super().remedy(error)


def _io(request: ExportRequest) -> str:
    io = str(request.target.options.get("io", "float"))
    if io not in ("float", "int8"):
        raise ConfigError(f"target {request.target.name!r}: io is {io!r}", remedy="Use float or int8.")
    if request.scheme.kind == "float":  # also the fp32 file that an int8 target is compared with
        return "float"
    if io == "int8" and request.scheme.kind not in _STATIC:
        raise ConfigError(
            f"target {request.target.name!r}: io int8 asks for static int8",
            f"scheme {request.scheme.label!r} computes its activations in float",
            "Use io: float.",
        )
    return io


def _newest(file: TfliteFile) -> str:
    """The ops of the file with a version above 1, which old runtimes may lack."""
    later = sorted({f"{name} version {number}" for name, number in file.operators() if number > 1})
    return ", ".join(later) or "version 1 of its ops"
