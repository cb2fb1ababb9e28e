"""LiteRT on the CPU (ai-edge-litert, XNNPACK delegate): runs .tflite files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session
from edgepress.validators.runtimes.tflite_io import as_float, boundary, stored
from edgepress.validators.runtimes.tflite_kernels import NOT_COMPUTE, kernel_report

INSTALL = "pip install 'edgepress[tflite]'"


class LiteRtSession(Session):
    """A .tflite file in LiteRT's interpreter.

    Args:
        path: the model.
        signature: inputs and outputs of the model.
        threads: intra-op threads.

    Raises:
        ExecutionError: LiteRT refuses the file, or it has no input or output of a promised name.
    """

    def __init__(self, path: Path, signature: Signature, threads: int = 1) -> None:
        self.path, self.signature, self.threads = path, signature, threads
        self.executed_by = f"ai-edge-litert {version('ai-edge-litert')} CPU (XNNPACK)"
        self._interpreter = self._load()
        runner = self._interpreter.get_signature_runner()
        self._inputs = boundary(runner.get_input_details())
        self._outputs = boundary(runner.get_output_details())
        for spec, table in [(s, self._inputs) for s in signature.inputs] + [(s, self._outputs) for s in signature.outputs]:
            if spec.name not in table:
                raise ExecutionError(f"{path.name} has no {spec.name!r}", f"its names are {sorted(table)}", "Export the model again.")

    def _load(self, **options: Any) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self.path), num_threads=self.threads, **options)
        interpreter.allocate_tensors()
        return interpreter

    def _fill(self, interpreter: Any, inputs: Arrays) -> None:
        for name, (index, dtype, scale, zero_point) in self._inputs.items():
            interpreter.set_tensor(index, stored(name, inputs[name], dtype, scale, zero_point))

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self._fill(self._interpreter, inputs)
        self._interpreter.invoke()
        outputs = {}
        for spec in self.signature.outputs:
            index, _, scale, zero_point = self._outputs[spec.name]
            outputs[spec.name] = as_float(self._interpreter.get_tensor(index), scale, zero_point)
        return outputs

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Inputs are copied in once; a call invokes and copies nothing. One binding at a time: the tensors are the interpreter's."""
        self._fill(self._interpreter, inputs)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def kernels(self) -> KernelReport:
        """Reads the interpreter's ops after delegation, with the types of their tensors."""
        tensors = {
            detail["index"]: {"name": detail["name"], "dtype": np.dtype(detail["dtype"]).name, "shape": detail["shape"]}
            for detail in self._interpreter.get_tensor_details()
        }
        ops = self._interpreter._get_ops_details()
        delegated = sum(op["op_name"] == "DELEGATE" for op in ops)
        return kernel_report(ops, tensors, f"LiteRT interpreter: ops and tensor types, {delegated} XNNPACK partitions")

    def layers(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Results of the compute ops by tensor name, as float32; computed by LiteRT's own kernels, without XNNPACK, which keeps them."""
        from ai_edge_litert.interpreter import OpResolverType

        interpreter = self._load(
            experimental_preserve_all_tensors=True, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        self._fill(interpreter, inputs)
        interpreter.invoke()
        details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
        found = {}
        for op in interpreter._get_ops_details():
            detail = details.get(int(op["outputs"][0])) if len(op["outputs"]) else None
            if detail is not None and op["op_name"] not in NOT_COMPUTE:
                value = as_float(interpreter.get_tensor(detail["index"]), *detail["quantization"])
                if value.dtype == np.float32:
                    found[str(detail["name"])] = value
        return found

    def close(self) -> None:
        """Release the interpreter and its memory."""
        self._interpreter = None


class LiteRt(Runtime):
    """Opens .tflite files."""

    name = "litert"

    def supports(self) -> Support:
        """Needs ai-edge-litert."""
        try:
            return Support(True, version("ai-edge-litert"))
        except PackageNotFoundError:
            return Support(False, None, "ai-edge-litert is not installed", INSTALL)

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        return LiteRtSession(folder / artifact.path, artifact.signature, threads)
