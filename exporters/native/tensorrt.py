"""ModelOpt: NVIDIA's post-training quantization of ONNX files, and engines of what it writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written
from edgepress.exporters.tensorrt import FILE, FOLDER, requested_capabilities, write_engines
from edgepress.exporters.tensorrt_build import BatchRange
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import Support

#: What its part for ONNX imports and `nvidia-modelopt` does not ask for: the extra that does pins an older onnx beside it.
_NEEDED = ("onnx_graphsurgeon", "onnxslim", "lief")


class ModelOptQuantizer(NativeQuantizer):
    """`modelopt.onnx.quantization` in int8: symmetric Q/DQ where TensorRT fuses it, ranges by entropy, its default.

    Weights stay floats with Q/DQ in `model.onnx`; engines hold integers. It runs as a program of its own, for it replaces parts of
    onnxruntime.quantization in the process that imports it.
    """

    runtime = "tensorrt"
    package = "nvidia-modelopt"
    extra = "native"
    kinds = ("static",)
    ranges = "entropy"

    def supports(self) -> Support:
        """Is it installed with what its ONNX part imports?"""
        found = super().supports()
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if found.usable and missing:
            return Support(False, None, f"{', '.join(missing)} not installed", f"pip install 'edgepress[{self.extra}]'")
        return found

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        model = folder / FOLDER / FILE
        model.parent.mkdir()
        samples = {spec.name: request.calibration[spec.name].astype(spec.dtype) for spec in request.source.signature.inputs}
        with TemporaryDirectory(dir=folder) as scratch:
            self._run(request, samples, Path(scratch), model)
        capabilities = requested_capabilities(request.target.options)
        sizes = BatchRange.of(request.source.signature.only_batch, request.target.batch)
        return Written((FOLDER,), write_engines(model, samples, sizes, capabilities))

    def _run(self, request: NativeRequest, samples: dict[str, np.ndarray], scratch: Path, model: Path) -> None:
        for part in request.path.glob(f"{FILE}*"):  # it writes beside what it reads
            shutil.copy2(part, scratch)
        np.savez(scratch / "samples.npz", **samples)  # type: ignore[arg-type]
        options = {
            "onnx_path": scratch / FILE,
            "calibration_data_path": scratch / "samples.npz",
            "quantize_mode": "int8",
            "calibration_method": self.ranges,
            "calibration_eps": "cpu",
            "high_precision_dtype": "fp32",
            "output_path": model,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-P", "-m", "modelopt.onnx.quantization", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ExportError(f"{request.scheme.tool} could not quantize the model", said[-1])


class ModelOptMaxQuantizer(ModelOptQuantizer):
    """The same with the ranges of what calibration saw."""

    ranges = "max"
