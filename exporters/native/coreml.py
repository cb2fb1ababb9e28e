"""coremltools.optimize: int8 weights in a float package."""

from __future__ import annotations

from pathlib import Path

from edgepress.exporters import coreml_package
from edgepress.exporters.base import quiet
from edgepress.exporters.coreml import PACKAGE
from edgepress.exporters.coreml_import import coremltools
from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written


class CoreMlQuantizer(NativeQuantizer):
    """`linear_quantize_weights`, symmetric int8 per channel. It starts from the float16 package, coremltools' own default."""

    runtime = "coreml"
    package = "coremltools"
    extra = "coreml"
    kinds = ("weights",)
    base_precision = "fp16"

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        with quiet():
            ct = coremltools()
            from coremltools.optimize import coreml

            model = ct.models.MLModel(str(request.path), skip_model_load=True)
            weights = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
            small = coreml.linear_quantize_weights(model, config=coreml.OptimizationConfig(global_config=weights))
            coreml_package.save(small, folder / PACKAGE)
        return Written((PACKAGE,))
