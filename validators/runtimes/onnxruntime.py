"""ONNX Runtime on the CPU: runs .onnx files and reads from the optimized graph which kernels ran in integers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session

INSTALL = "pip install 'edgepress[onnxruntime]'"


class OrtSession(Session):
    """An .onnx file in ONNX Runtime's CPU provider.

    Args:
        path: the model.
        signature: inputs and outputs of the model.
        threads: intra-op threads.
        reference_qdq: compute every QuantizeLinear/DequantizeLinear literally and everything between them in float32,
            with no integer kernel and so no saturation of one CPU's instructions: what the graph says, for
            reference runs of graphs built for another engine.
        executed_by: what reports print; None for ONNX Runtime's own name and version.

    Raises:
        ExecutionError: ONNX Runtime refuses the file.
    """

    def __init__(
        self, path: Path, signature: Signature, threads: int = 1, *, reference_qdq: bool = False, executed_by: str | None = None
    ) -> None:
        self.path, self.signature, self.threads, self.reference_qdq = path, signature, threads, reference_qdq
        self.executed_by = executed_by or f"onnxruntime {version('onnxruntime')} CPU"
        self._session = self._load(path)
        self._names = [spec.name for spec in signature.outputs]
        have = [output.name for output in self._session.get_outputs()]
        if absent := [name for name in self._names if name not in have]:
            raise ExecutionError(f"{path.name} has no output {absent[0]!r}", f"its outputs are {have}", "Export the model again.")

    def _load(self, path: Path, optimized: Path | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if self.reference_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        feeds = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.signature.inputs}
        return dict(zip(self._names, map(_widened, self._session.run(self._names, feeds)), strict=True))

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Inputs held in ONNX Runtime's own tensors, outputs bound: a call copies nothing in."""
        session, binding = self._session, self.binding(inputs)
        return lambda: session.run_with_iobinding(binding)

    def binding(self, inputs: Arrays) -> Any:
        """ONNX Runtime's IOBinding of these inputs and of every output."""
        import onnxruntime

        binding = self._session.io_binding()
        for spec in self.signature.inputs:
            binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(inputs[spec.name])))
        for name in self._names:
            binding.bind_output(name)
        return binding

    def kernels(self) -> KernelReport:
        """Reads the graph as ONNX Runtime optimized it for this CPU; shapes come from one run of it on zeros."""
        from edgepress.validators.runtimes import onnx_graph

        with TemporaryDirectory() as scratch:
            optimized = Path(scratch) / "optimized.onnx"
            self._load(self.path, optimized)
            return onnx_graph.kernel_report(optimized, self.signature, "onnxruntime optimized graph")

    def layers(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every float tensor of the unoptimized graph's compute ops, keyed by its name in the file."""
        from edgepress.validators.runtimes import onnx_graph

        with TemporaryDirectory() as scratch:
            watched = Path(scratch) / "watched.onnx"
            names = onnx_graph.expose_compute_outputs(self.path, watched)
            session = self._load(watched)
            feeds = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.signature.inputs}
            values = session.run(names, feeds)
        return {name: _widened(value) for name, value in zip(names, values, strict=True) if np.issubdtype(value.dtype, np.floating)}

    def close(self) -> None:
        """Release the session and its memory."""
        self._session = None


def _widened(value: np.ndarray) -> np.ndarray:
    """Half-precision outputs as float32."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


class OnnxRuntime(Runtime):
    """Opens .onnx files."""

    name = "onnxruntime"

    def supports(self) -> Support:
        """Needs onnxruntime to run, onnx to read the optimized graph."""
        for package in ("onnxruntime", "onnx"):
            try:
                version(package)
            except PackageNotFoundError:
                return Support(False, None, f"{package} is not installed", INSTALL)
        return Support(True, version("onnxruntime"))

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        return OrtSession(folder / artifact.path, artifact.signature, threads)
