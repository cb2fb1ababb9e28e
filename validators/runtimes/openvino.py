"""OpenVINO's CPU plugin: runs .xml/.bin folders and reads kernel precisions from the compiled model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session

#: Precision of an artifact -> (what the plugin computes its float ops in, the capability a CPU reports for it). Everything
#: else runs in f32; left alone, the plugin takes bf16 where the CPU has it. A CPU that lacks the type would emulate it.
PRECISION_HINT = {"fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16")}


@cache
def core() -> Any:
    """The Core of this process, kept to its end.

    The CPU plugin of every `openvino.Core` gives the thread that loads it another stack for signal handlers, and frees it together with the
    Core. Where two Cores do not end in the reverse order of their making, the thread is left with a stack that was freed, and
    the next signal that has a handler kills the process (seen in OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVinoSession(Session):
    """A model folder compiled for the CPU.

    Args:
        xml: the .xml file; its .bin lies beside it.
        signature: inputs and outputs of the model.
        threads: inference threads.
        precision: of the artifact (`PRECISIONS`): `fp16` and `bf16` compute in that type where the CPU has it, which
            `kernels()` shows; all others, and CPUs without it, in f32.

    Raises:
        ExecutionError: the file has no such output.
    """

    def __init__(self, xml: Path, signature: Signature, threads: int = 1, precision: str = "fp32") -> None:
        self.signature = signature
        self.executed_by = f"openvino {version('openvino')} CPU"
        self._core = core()
        hint, capability = PRECISION_HINT.get(precision, ("f32", "FP32"))
        if capability not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            hint = "f32"
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": hint,
        }
        self._xml = xml
        self._compiled = self._core.compile_model(self._core.read_model(xml), "CPU", self._settings)
        self._request = self._compiled.create_infer_request()
        for spec in signature.outputs:
            if not any(spec.name in port.get_names() for port in self._compiled.outputs):
                have = [sorted(port.get_names()) for port in self._compiled.outputs]
                raise ExecutionError(f"{xml.name} has no output {spec.name!r}", f"its outputs are {have}", "Export the model again.")

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self._request.infer({spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.signature.inputs})
        return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self.signature.outputs}

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """One infer request with its input tensors set beforehand: a call copies nothing in or out."""
        request = self.bound_request(inputs)

        def call() -> None:
            request.start_async()
            request.wait()

        return call

    def bound_request(self, inputs: Arrays) -> Any:
        """A fresh infer request that holds copies of these inputs."""
        import openvino

        request = self._compiled.create_infer_request()
        for spec in self.signature.inputs:
            request.set_tensor(spec.name, openvino.Tensor(np.array(inputs[spec.name], order="C", copy=True)))
        return request

    def kernels(self) -> KernelReport:
        """Precisions of the execution graph, from one that has run nothing: shapes of the last batch would stay in it."""
        from edgepress.validators.runtimes import openvino_graph

        model = self._core.read_model(self._xml)
        model.reshape({spec.name: [1 if d is None else d for d in spec.shape] for spec in self.signature.inputs})
        compiled = self._core.compile_model(self._core.read_model(self._xml), "CPU", self._settings)
        return openvino_graph.kernel_report(compiled.get_runtime_model(), model, "openvino runtime model")

    def layers(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Float results of the model's layers by tensor name, from a copy whose layers are outputs too."""
        from edgepress.validators.runtimes import openvino_graph

        model = self._core.read_model(self._xml)
        names = openvino_graph.expose_layers(model)
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        request.infer({spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.signature.inputs})
        return {name: request.get_output_tensor(index).data.copy() for index, name in names.items()}

    def close(self) -> None:
        """Release the compiled model."""
        self._request = self._compiled = None


class OpenVino(Runtime):
    """Opens folders that hold model.xml and model.bin."""

    name = "openvino"

    def supports(self) -> Support:
        """Needs openvino."""
        try:
            return Support(True, version("openvino"))
        except PackageNotFoundError:
            return Support(False, None, "openvino is not installed", "pip install 'edgepress[openvino]'")

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        path = folder / artifact.path
        xml = path / "model.xml" if path.is_dir() else path
        return OpenVinoSession(xml, artifact.signature, threads, artifact.scheme.precision)
