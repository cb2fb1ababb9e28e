"""onnxruntime.quantization: Q/DQ with calibrated ranges, and dynamic int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written
from edgepress.exporters.onnx_dynamic import check_dynamic

FILE = "model.onnx"
_BATCH = 32


class OnnxRuntimeQuantizer(NativeQuantizer):
    """`quantize_static` (Q/DQ, uint8 activations, int8 weights per channel, min-max ranges) and `quantize_dynamic`."""

    runtime = "onnxruntime"
    package = "onnxruntime"
    extra = "onnxruntime"
    kinds: tuple[str, ...] = ("static", "dynamic")
    reduce_range = False

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path, external = folder / FILE, bool(request.source.extra)
        with TemporaryDirectory(dir=folder) as scratch:
            prepared = Path(scratch) / FILE
            quant_pre_process(str(request.path), str(prepared), save_as_external_data=external)
            if request.scheme.kind == "dynamic":
                quantize_dynamic(prepared, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=external)
                check_dynamic(path)
            else:
                self._static(request, prepared, path)
        return Written((FILE, f"{FILE}.data") if external else (FILE,))

    def _static(self, request: NativeRequest, prepared: Path, path: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
                self._batches = batches

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._batches, None)

        quantization.quantize_static(
            str(prepared),
            str(path),
            Reader(request.batches(_BATCH)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=bool(request.source.extra),
        )


class ReducedRangeQuantizer(OnnxRuntimeQuantizer):
    """`quantize_static` with weights in 7 bits, which its documentation advises where the CPU has no VNNI."""

    kinds = ("static",)
    reduce_range = True
