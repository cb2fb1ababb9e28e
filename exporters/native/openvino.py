"""NNCF: nncf.quantize on the OpenVINO model, at its defaults and with its patterns for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written
from edgepress.exporters.openvino import FOLDER, strip_file
from edgepress.targets.errors import QuantizationError


class NncfQuantizer(NativeQuantizer):
    """`nncf.quantize` with all calibration samples, one at a time, and fast bias correction."""

    runtime = "openvino"
    package = "nncf"
    extra = "native"
    kinds = ("static",)
    transformer = False

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        import openvino
        from openvino.passes import ConstantFolding, Manager

        model = openvino.Core().read_model(request.path / "model.xml")
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)  # nncf.quantize stumbles over a lookup of constants, like that of all positions
        if self.transformer and not has_attention(model):
            raise QuantizationError("the model has no attention", "model_type=TRANSFORMER knows the patterns of attention")
        import nncf

        samples = list(request.batches(1))
        options = {"model_type": nncf.ModelType.TRANSFORMER} if self.transformer else {}
        quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), **options)
        written = folder / FOLDER
        written.mkdir()
        openvino.save_model(quantized, written / "model.xml", compress_to_fp16=False)
        strip_file(written / "model.xml")
        return Written((FOLDER,))


class NncfTransformerQuantizer(NncfQuantizer):
    """The same with `model_type=TRANSFORMER`, for models that have attention."""

    transformer = True


def has_attention(model: Any) -> bool:
    """A softmax whose result is multiplied by a matrix, or the fused op, in an `openvino.Model`."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            return True
        if op.get_type_name() == "Softmax":
            readers = op.output(0).get_target_inputs()
            if any(reader.get_node().get_type_name() == "MatMul" for reader in readers):
                return True
    return False
