"""OpenVINO: an .xml and a .bin read from the shared ONNX lowering."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepress.exporters.base import Exporter, ExportRequest, first_line
from edgepress.exporters.onnx import DEFAULT_OPSET, check_batch, lower_request, missing_packages
from edgepress.exporters.openvino_int4 import trim_zero_points
from edgepress.exporters.openvino_pads import pad_two_dimensions, pad_within_layers
from edgepress.exporters.openvino_passes import (
    drop_repeated_roundings,
    drop_zero_offsets,
    fold_biases,
    keep_reduced_dimensions,
    part_extremes_from_rounding,
    round_in_one,
)
from edgepress.exporters.openvino_shapes import gather_in_one_dimension, part_added_dimensions
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import Artifact, Signature, Support

#: The folder of an export that holds `model.xml` and `model.bin`.
FOLDER = "model"


class OpenVinoExporter(Exporter):
    """`model/model.xml` and `model/model.bin` for OpenVINO's CPU plugin: fp32, fp16, bf16, int8, int8 weights.

    The file is made with `Core.read_model` from the ONNX that ONNX Runtime would get: on this route the plugin fuses every
    Q/DQ pair into integer kernels, where `openvino.convert_model` leaves some linear layers in float. bf16 is a way of
    executing fp32 weights, so its file equals the fp32 one.
    """

    runtime = "openvino"

    def supports(self) -> Support:
        """Needs openvino, and onnx, onnxscript and onnxruntime for the lowering and its check."""
        missing = missing_packages("openvino", "onnx", "onnxscript", "onnxruntime")
        if missing:
            return Support(False, None, f"{', '.join(missing)} not installed", "pip install 'edgepress[openvino]'")
        return Support(True, version("openvino"))

    def reason(self, error: Exception) -> str:
        """The op that the frontend could not convert, and its last words about it: the lines before are places in its sources."""
        lines = [line.strip() for line in str(error).partition("\nSummary:")[0].splitlines() if line.strip()]
        op = next((line[3:].partition(" with a message")[0] for line in lines if line.startswith("-- ")), "")
        return f"{op}: {lines[-1][:300]}" if op else first_line(error)

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        import openvino

        written = folder / FOLDER
        written.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            onnx_path = Path(scratch) / "model.onnx"
            float_ops = lower_request(self, request, onnx_path, opset=DEFAULT_OPSET)
            check_batch(onnx_path, request)
            model = openvino.Core().read_model(onnx_path)
            trim_zero_points(model)
            fold_biases(model)
            drop_zero_offsets(model)
            gather_in_one_dimension(model)
            part_added_dimensions(model)
            drop_repeated_roundings(model)
            pad_within_layers(model)
            pad_two_dimensions(model)
            keep_reduced_dimensions(model)
            part_extremes_from_rounding(model)
            round_in_one(model)
            _name_tensors(model, request.signature)
            _name_operations(model)
            openvino.save_model(model, written / "model.xml", compress_to_fp16=request.scheme.precision == "fp16")
            del model  # it maps the ONNX file
        strip_file(written / "model.xml")
        _check_reload(written / "model.xml", request)
        release = ".".join(version("openvino").split(".")[:2])
        return Artifact(
            path=FOLDER,
            target=request.target.name,
            scheme=request.scheme,
            signature=request.signature,
            facts={"format": "openvino-ir", "opset": DEFAULT_OPSET, "runtime_minimum": f"openvino {release}"},
            float_ops=float_ops,
        )


def _name_tensors(model: Any, signature: Signature) -> None:
    """Give every input and output exactly the name of the signature."""
    for port, spec in zip(model.inputs, signature.inputs, strict=True):
        port.get_tensor().set_names({spec.name})
        port.get_node().set_friendly_name(spec.name)
    for port, spec in zip(model.outputs, signature.outputs, strict=True):
        port.get_tensor().set_names({spec.name})
    model.set_friendly_name("model")


def _name_operations(model: Any) -> None:
    """Number operations OpenVINO named from a counter of the whole process, so that equal requests give equal bytes."""
    for index, op in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{op.get_type_name()}_\d+", op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}.{index}")


def strip_file(xml: Path) -> None:
    """Take out of the file what a scratch folder or a build machine left in it."""
    text = xml.read_text()
    cleaned = re.sub(r"^\t<rt_info>.*?^\t</rt_info>\n", "", text, flags=re.DOTALL | re.MULTILINE)
    xml.write_text(cleaned)


def _check_reload(xml: Path, request: ExportRequest) -> None:
    """Read the files back: names and batch as promised.

    Raises:
        ExportError: an input or output has another name, or a batch is a number that the model's is not.
    """
    import openvino

    model = openvino.Core().read_model(xml)
    specs = (*request.signature.inputs, *request.signature.outputs)
    for port, spec in zip((*model.inputs, *model.outputs), specs, strict=True):
        if spec.name not in port.get_names():
            raise ExportError(f"target {request.target.name!r}: {spec.name!r} is called {sorted(port.get_names())} in the saved file")
        if spec.shape[0] is None and port.get_partial_shape()[0].is_static:
            raise ExportError(
                f"target {request.target.name!r}: the batch of {spec.name!r} is fixed at {port.get_partial_shape()[0]} in the saved file",
                "reading the ONNX froze it",
                "Make the model's forward() independent of the batch size.",
            )
