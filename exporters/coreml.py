"""Core ML: an ML Program (.mlpackage) converted from the ExportedProgram by coremltools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgepress.compress.program import load_program
from edgepress.compress.quantize import float_module
from edgepress.compress.quantize.complex_parts import has_complex
from edgepress.compress.quantize.graph import op_name
from edgepress.exporters import coreml_ops, coreml_package, coreml_recurrent
from edgepress.exporters.base import Exporter, ExportRequest, quiet
from edgepress.exporters.coreml_import import coremltools, unchecked
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import Artifact, Scheme, Signature, Support, TensorSpec

#: minimum_os -> the converter's name of the opset. macOS 12 shipped with iOS 15, and so on.
OPSETS = {"iOS15": 15, "iOS16": 16, "iOS17": 17, "iOS18": 18, "macOS12": 15, "macOS13": 16, "macOS14": 17, "macOS15": 18}
DEFAULT_MINIMUM_OS = "iOS18"
PACKAGE = "model.mlpackage"

#: precision or kind of scheme -> (first opset that has the ops it is written in, those ops).
_NEEDS = {
    "int4-weights": (18, "4-bit weights in groups (constexpr_blockwise_shift_scale)"),
    "static": (17, "quantize and dequantize of activations"),
    "static-matmul": (17, "quantize and dequantize of activations"),
    "weights": (16, "integer weights (constexpr_affine_dequantize)"),
}
_DTYPES = {
    **dict.fromkeys(("float64", "float32", "float16"), np.float32),
    **dict.fromkeys(("int64", "int32", "int16", "int8", "uint8", "bool"), np.int32),
}

#: How far an 8-bit integer may be from its zero point.
_INTEGERS = 256


class CoreMlExporter(Exporter):
    """Writes `model.mlpackage`.

    Batch: the package takes exactly `ExportRequest.batch` samples (1 unless the recipe says otherwise). A flexible batch makes
    coremltools compute every reshape at run time, which the Neural Engine does not execute, and it refuses Swin-like and
    group-norm models altogether.

    Precision: fp32 computes in float32; everything else, int8 included, computes in float16 between the integer ops,
    because that is what the Neural Engine and the GPU run. Inputs and outputs stay float32 (integers: int32).
    """

    runtime = "coreml"

    def supports(self) -> Support:
        """coremltools is all that is needed; it converts on any system."""
        try:
            return Support(True, f"coremltools {version('coremltools')}")
        except PackageNotFoundError:
            return Support(False, missing="coremltools is not installed", install="pip install 'edgepress[coreml]'")

    def remedy(self, error: Exception) -> str:
        """Name the torch op the converter stopped at, where its message does."""
        found = re.search(r"kind ([\w.:]+)|op named ['\"]?([\w.:]+)|op ['\"]([\w.:]+)['\"]", str(error))
        if found:
            op = next(group for group in found.groups() if group)
            return f"coremltools {version('coremltools')} has no rule for the op {op!r}: write it with other ops in your model."
        return super().remedy(error)

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        minimum_os = minimum_os_of(request.target.options.get("minimum_os", DEFAULT_MINIMUM_OS), request.target.name, request.scheme)
        module, float_ops = _module(request, self)
        batch = request.batch
        examples = tuple(_typed(torch.from_numpy(np.resize(sample, (batch, *sample.shape[1:])))) for sample in request.samples)
        signature = _signature(request.signature, examples, batch)
        with quiet():
            coremltools()
            coreml_ops.register()
            plain = coreml_recurrent.with_float_weights(module)
            program = coreml_ops.fixed_batch(plain, examples, half=_compute(request.scheme) == "float16")
            model = _convert(program, signature, minimum_os, request.scheme)
            if plain is not module:
                model = coreml_recurrent.store_weights(model)
            _check_names(model, signature, request.target.name)
            coreml_package.save(model, folder / PACKAGE)
        facts = {
            "minimum_os": minimum_os,
            "specification_version": int(model.get_spec().specificationVersion),
            "compute_precision": _compute(request.scheme),
            "batch": batch,
            "converter": f"coremltools {version('coremltools')}",
            "runtime_minimum": minimum_os,
        }
        return Artifact(PACKAGE, request.target.name, request.scheme, signature, facts, float_ops)


def minimum_os_of(option: Any, target: str, scheme: Scheme) -> str:
    """Check the `minimum_os` option against what the scheme needs.

    Raises:
        ExportError: an unknown system, or one that is older than the ops of the scheme.
    """
    name = str(option)
    if name not in OPSETS:
        raise ExportError(f"target {target!r}: unknown minimum_os {name!r}", "", f"Use one of {', '.join(OPSETS)}.")
    needed, ops = _NEEDS.get(scheme.precision) or _NEEDS.get(scheme.kind, (15, ""))
    if OPSETS[name] < needed:
        family = name.rstrip("0123456789")
        fitting = next(other for other, opset in OPSETS.items() if opset == needed and other.startswith(family))
        raise ExportError(
            f"target {target!r}: {scheme.label} cannot run on {name}",
            f"{ops} came with {fitting}",
            f"Set minimum_os: {fitting}, or choose another precision.",
        )
    return name


def _compute(scheme: Scheme) -> str:
    return "float32" if scheme.precision == "fp32" else "float16"


def _module(request: ExportRequest, exporter: Exporter) -> tuple[torch.nn.Module, tuple[Mapping[str, Any], ...]]:
    """The graph to convert: the float program, or its rendering in integers, and what stays float in it."""
    if request.scheme.kind == "float":
        program = load_program(request.program)
        return float_module(program) if has_complex(program.graph_module) else program.module(check_guards=False), ()
    rendered = exporter.rendered(request)
    return rendered.module, tuple(rendered.float_ops)


def _typed(example: torch.Tensor) -> torch.Tensor:
    """An input in a type that coremltools has: it knows no integers of 8 bits among inputs."""
    return example.int() if example.dtype in (torch.int8, torch.uint8) else example


def _signature(wanted: Signature, examples: tuple[torch.Tensor, ...], batch: int) -> Signature:
    """The promised names with the types and the batch of the package."""

    def fixed(spec: TensorSpec) -> tuple[int | None, ...]:
        return (batch, *spec.shape[1:])

    def typed(spec: TensorSpec) -> str:
        if spec.dtype not in _DTYPES:
            raise ExportError(f"{spec.name!r} is of type {spec.dtype}", "Core ML has no such type", f"Use one of {', '.join(_DTYPES)}.")
        return np.dtype(_DTYPES[spec.dtype]).name

    inputs = tuple(TensorSpec(spec.name, typed(spec), tuple(example.shape)) for spec, example in zip(wanted.inputs, examples, strict=True))
    outputs = tuple(TensorSpec(spec.name, typed(spec), fixed(spec)) for spec in wanted.outputs)
    return Signature(inputs, outputs)


def _convert(program: ExportedProgram, signature: Signature, minimum_os: str, scheme: Scheme) -> Any:
    ct = coremltools()
    precision = ct.precision.FLOAT32 if _compute(scheme) == "float32" else ct.precision.FLOAT16
    with unchecked():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.dtype(spec.dtype).type) for spec in signature.inputs],
            outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in signature.outputs],
            minimum_deployment_target=getattr(ct.target, f"iOS{OPSETS[minimum_os]}"),
            compute_precision=precision,
            skip_model_load=True,
            pass_pipeline=_passes(program),
        )
    model._mil_program.validate()
    return model


def _passes(program: ExportedProgram) -> Any:
    """The converter's own passes, without those that fail here.

    One gives the smaller of a sum's two scales 1 and the other their ratio. Where integers times that ratio are beyond half precision, a
    residual branch that layer scale keeps small would make all of the sum infinite. Another looks for a bias behind a convolution whose
    dimensions are exchanged, and at weights that are floats alone. A third multiplies where the model divides: by the inverse of a number
    that half precision does not have, which is zero or nearly so in it.
    """
    pipeline, largest = coremltools().PassPipeline(), float(torch.finfo(torch.float16).max)
    away = set()
    for node in program.graph.nodes:
        if op_name(node) == "div" and isinstance(node.args[1], float | int) and abs(node.args[1]) > largest:
            away.add("common::divide_to_multiply")
        if node.target in (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor):
            scales = [item.args[1] for item in node.all_input_nodes if "dequantize_per_tensor" in str(item.target)]
            if len(scales) == 2 and max(scales) / min(scales) * _INTEGERS > largest:
                away.add("common::distributive_quantized_binary_op_scale_normalization")
            if any(map(_turned, node.all_input_nodes)):
                away.add("common::fuse_conv_bias")
    pipeline.remove_passes(away)
    return pipeline


def _turned(node: Node) -> bool:
    """Is it the output of a convolution with integer weights, its dimensions exchanged?"""
    if op_name(node) not in ("permute", "transpose"):
        return False
    source = node.args[0]
    return isinstance(source, Node) and "conv" in op_name(source) and "dequantize" in str(source.args[1])


def _check_names(model: Any, signature: Signature, target: str) -> None:
    description = model.get_spec().description
    for kind, features, specs in (
        ("inputs", description.input, signature.inputs),
        ("outputs", description.output, signature.outputs),
    ):
        got, wanted = [feature.name for feature in features], [spec.name for spec in specs]
        if got != wanted:
            raise ExportError(
                f"target {target!r}: coremltools named the {kind} {got}, the model's are {wanted}",
                "Core ML feature names are identifiers",
                "Rename them to letters, digits and underscores.",
            )
