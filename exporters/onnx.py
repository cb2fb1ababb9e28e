"""ONNX: the lowering that the ONNX Runtime, OpenVINO and TensorRT exporters share, and ONNX Runtime's own exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgepress.compress.program import load_program
from edgepress.compress.quantize import plain_model
from edgepress.compress.quantize.unpacked import INTEGERS
from edgepress.exporters.base import Exporter, ExportRequest, quiet
from edgepress.exporters.decompositions import PLAIN, written_out
from edgepress.exporters.programs import program_of
from edgepress.targets.errors import ConfigError, ExportError
from edgepress.targets.nouns import Artifact, Signature, Support

#: The opset of a target that names none: the first whose Q/DQ take every integer type.
DEFAULT_OPSET = 21

#: Opset -> first ONNX Runtime that loads it (its compatibility table).
RUNTIME_MINIMUM = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.22"}

#: The first opset with 4-bit integers, and the first ONNX Runtime that casts them to 8 bits.
INT4_OPSET, INT4_RUNTIME_MINIMUM = 21, "1.23"

#: Tensors of more bytes than this in total go beside the graph: a protobuf message ends at 2 GiB.
INLINE_LIMIT_BYTES = 1_900_000_000


def lower_to_onnx(
    module_or_program: torch.nn.Module | ExportedProgram,
    signature: Signature,
    samples: Sequence[np.ndarray],
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
) -> Path:
    """Write a module as one ONNX file with the batch of its signature, dynamic or fixed, equal bytes for equal requests.

    Args:
        module_or_program: float, or with quantized_decomposed Q/DQ nodes, which become QuantizeLinear and
            DequantizeLinear; positional inputs, dimension 0 of every input and output is the batch.
        signature: gives inputs and outputs their names, and the batch.
        samples: for each input an array (n >= 2, ...) of the input's dtype, for tracing.
        path: the file to write; tensors past `INLINE_LIMIT_BYTES` go to `<path>.data` beside it.
        opset: version of the ONNX standard operators.

    Returns:
        `path`.

    Raises:
        ExportError: an input's batch cannot be dynamic.
    """
    from edgepress.exporters import onnx_fp8, onnx_int4
    from edgepress.exporters.onnx_library import library_unparsed, rules_by_operator

    with quiet(), library_unparsed(), rules_by_operator():
        program = written_out(_exported(module_or_program, samples, signature.only_batch), PLAIN)
        lowered = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            opset_version=opset,
            verbose=False,
            external_data=False,
            custom_translation_table=onnx_int4.translations() | onnx_fp8.translations(),
        )
    if lowered is None:
        raise ExportError("torch.onnx.export returned nothing", "the exporter gave no reason", "Check the installed torch and onnxscript.")
    onnx_fp8.store_weights(lowered.model)
    onnx_int4.pack_int4_layers(lowered.model)  # which also takes out what nothing reads any more
    _strip(lowered.model)
    _save(lowered.model, path)
    return path


def _exported(
    module_or_program: torch.nn.Module | ExportedProgram, samples: Sequence[np.ndarray], only_batch: int | None
) -> ExportedProgram:
    if isinstance(module_or_program, ExportedProgram):
        return module_or_program
    arguments = tuple(torch.from_numpy(np.resize(sample, (only_batch or 2, *sample.shape[1:]))) for sample in samples)
    return program_of(module_or_program, arguments, dynamic=only_batch is None)


def _strip(model: Any) -> None:
    """Take out what differs between two runs or names this machine: stack traces, symbol numbers, documentation."""
    import onnx_ir as ir

    for function_or_graph in (model.graph, *model.functions.values()):
        for node in function_or_graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
        function_or_graph.metadata_props.clear()
        function_or_graph.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "edgepress", None


def _save(model: Any, path: Path) -> None:
    import onnx
    import onnx_ir as ir

    total = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if total > INLINE_LIMIT_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # inferred shapes carry the numbers of torch's symbols, which differ between runs
    path.write_bytes(serialized(proto, onnx.checker.check_model))


def serialized(proto: Any, check: Any = None) -> bytes:
    """The bytes of an ONNX model, equal for equal models."""
    if check is not None:
        check(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def request_opset(options: Mapping[str, Any]) -> int:
    """The opset a target asks for.

    Raises:
        ConfigError: it is not an integer that some ONNX Runtime in `RUNTIME_MINIMUM` loads.
    """
    opset = options.get("opset", DEFAULT_OPSET)
    if not isinstance(opset, int) or opset not in RUNTIME_MINIMUM:
        known = ", ".join(map(str, RUNTIME_MINIMUM))
        raise ConfigError(f"opset {opset!r} cannot be written", "ONNX Runtime and the lowering share these", f"Use one of {known}.")
    return opset


def lower_request(exporter: Exporter, request: ExportRequest, path: Path, *, opset: int) -> tuple[Mapping[str, Any], ...]:
    """Lower the program of a request, Q/DQ included where its scheme is static or weights.

    Returns:
        The ops left in float with the reason (`Artifact.float_ops`); empty for the schemes float and dynamic.

    Raises:
        ConfigError: layers are to be stored in 4 bits, and the opset has none.
    """
    from edgepress.exporters import onnx_narrow

    if request.scheme.kind in ("float", "dynamic"):
        lower_to_onnx(plain_model(load_program(request.program)), request.signature, request.samples, path, opset=opset)
        return ()
    if request.scheme.int4_layers and opset < INT4_OPSET:
        raise ConfigError(f"opset {opset} has no 4-bit integers", "single layers are to be stored in them", f"Use {INT4_OPSET} or later.")
    rendered = exporter.rendered(request)
    lower_to_onnx(rendered.module, request.signature, request.samples, path, opset=opset)
    if request.scheme.narrow_layers:
        onnx_narrow.pack_weights(path)
    return tuple(rendered.float_ops)


def missing_packages(*names: str) -> list[str]:
    """Those of the named distributions that are not installed."""
    missing = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


class OnnxRuntimeExporter(Exporter):
    """One .onnx file for ONNX Runtime on CPUs: fp32, fp16, int8 (Q/DQ or dynamic) and int8 weights."""

    runtime = "onnxruntime"

    def supports(self) -> Support:
        """Needs onnx and onnxscript to write, onnxruntime to quantize dynamically and to check the file."""
        missing = missing_packages("onnx", "onnxscript", "onnxruntime")
        if missing:
            return Support(False, None, f"{', '.join(missing)} not installed", "pip install 'edgepress[onnxruntime]'")
        return Support(True, version("onnxruntime"))

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        from edgepress.exporters import onnx_biases, onnx_dynamic, onnx_kernels, onnx_layouts, onnx_passes, onnx_recurrent, onnx_transposed

        opset = request_opset(request.target.options)
        path, bits = folder / "model.onnx", request.scheme.weight_bits
        integer_lstm = False
        float_ops = lower_request(self, request, path, opset=opset)
        with quiet():
            if request.scheme.precision == "fp16":
                onnx_passes.convert_to_fp16(path)
            else:
                onnx_kernels.write_mish(path)
            if request.scheme.kind in ("static", "static-matmul"):
                integer_lstm = onnx_recurrent.quantize_lstm(path, bits)  # while the file has ONNX's own operators alone
                onnx_biases.quantize_output_biases(path)
                onnx_biases.fuse_biases(path)
                onnx_passes.fold_at_load(path, (), INTEGERS)
                onnx_transposed.convolve_phases(path)
                onnx_kernels.pool_means(path)
                onnx_kernels.convolve_averages(path)
                onnx_kernels.sum_hard_sigmoids(path)
                onnx_kernels.fuse_silus(path)
                onnx_layouts.repeat_rows(path)
                onnx_layouts.turn_entries(path)
                onnx_passes.guard_float_layers(path)
            if request.scheme.kind == "weights":
                onnx_passes.fold_at_load(path)
            if request.scheme.kind == "dynamic":
                float_ops = onnx_dynamic.quantize_dynamic(path, bits)
                integer_lstm = onnx_recurrent.quantize_lstm(path, bits)
                onnx_dynamic.check_dynamic(path)
            if integer_lstm:
                float_ops = tuple(op for op in float_ops if op["op"] not in ("aten.lstm", "onnx.LSTM"))
        check_batch(path, request)
        data = path.with_name(f"{path.name}.data")
        minimum = INT4_RUNTIME_MINIMUM if request.scheme.int4_layers else RUNTIME_MINIMUM[opset]
        return Artifact(
            path=path.name,
            target=request.target.name,
            scheme=request.scheme,
            signature=request.signature,
            facts={"format": "onnx", "opset": opset, "runtime_minimum": f"onnxruntime {minimum}"},
            float_ops=float_ops,
            extra=(data.name,) if data.exists() else (),
        )


def check_batch(path: Path, request: ExportRequest) -> None:
    """Run an ONNX file at batch 1 and 3 and compare, so that a batch that tracing froze cannot ship; at the only batch of a model with one.

    Raises:
        ExportError: a batch is refused, an output has another batch, or (float schemes) the first sample's outputs
            depend on the batch.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # What the graph says, whatever runtime it is for: onnxruntime moves the Q/DQ of a MaxPool and makes int8 ones with a uint8 zero point.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in request.signature.outputs]
    only = request.signature.only_batch
    by_batch: dict[int, list[np.ndarray]] = {}
    for batch in (1, 3) if only is None else (only,):
        feeds = {s.name: a[np.arange(batch) % len(a)] for s, a in zip(request.signature.inputs, request.samples, strict=True)}
        try:
            by_batch[batch] = session.run(names, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise _frozen(request, f"at batch {batch} onnxruntime says: {str(error)[:200]}") from error
        wrong = [f"{n} has shape {v.shape}" for n, v in zip(names, by_batch[batch], strict=True) if v.shape[:1] != (batch,)]
        if wrong:
            raise _frozen(request, f"at batch {batch} output {wrong[0]}")
    if request.scheme.kind != "float" or only is not None:
        return  # rounding, and ranges taken over the whole batch, may move integer results
    tolerance = 1e-4 if request.scheme.precision == "fp32" else 2e-2
    for name, one, three in zip(names, by_batch[1], by_batch[3], strict=True):
        if not np.allclose(one[0], three[0], rtol=tolerance, atol=tolerance * float(np.abs(three).max(initial=1.0)), equal_nan=True):
            raise _frozen(request, f"output {name} of the first sample differs between batch 1 and batch 3")


def _frozen(request: ExportRequest, why: str) -> ExportError:
    return ExportError(
        f"target {request.target.name!r}: the exported file does not take every batch size",
        why,
        "Make the model's forward() independent of the batch size (no x.shape[0] turned into a Python number).",
    )
