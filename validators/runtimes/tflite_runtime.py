"""tflite-runtime 2.14, which devices in the field still ship: runs .tflite files in a child process of its own environment."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session
from edgepress.validators.runtimes.tflite_environment import COMMAND, VERSION, environment, install, installed, interpreter
from edgepress.validators.runtimes.tflite_io import as_float, stored
from edgepress.validators.runtimes.tflite_kernels import kernel_report
from edgepress.validators.runtimes.tflite_worker import receive, send

__all__ = ["TfliteRuntime", "TfliteSession", "install"]

_WORKER = Path(__file__).resolve().parent / "tflite_worker.py"
_ANSWER_SECONDS = 300.0


class TfliteSession(Session):
    """A .tflite file in a child process.

    Args:
        path: the model.
        signature: inputs and outputs of the model.
        threads: intra-op threads.
        answer_seconds: a child that is silent for longer is taken to hang, and is ended.
        command: how the worker is started; for tests.

    Raises:
        ExecutionError: tflite-runtime refuses the file (every op it lacks is named with its version), crashed or hung.
    """

    def __init__(
        self,
        path: Path,
        signature: Signature,
        threads: int = 1,
        *,
        answer_seconds: float = _ANSWER_SECONDS,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self.path, self.signature = path, signature
        self.executed_by = f"tflite-runtime {VERSION} CPU"
        self._answer_seconds = answer_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        command = command or (str(interpreter()), "-I", str(_WORKER))
        self._child = subprocess.Popen(
            [*command, str(path.resolve()), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._answers: queue.Queue[tuple[dict[str, Any], dict[str, Any]] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready, _ = self._next()
        except BaseException:
            self.close()
            raise
        self._inputs, self._outputs = ready["inputs"], ready["outputs"]
        for spec, table in [(s, self._inputs) for s in signature.inputs] + [(s, self._outputs) for s in signature.outputs]:
            if spec.name not in table:
                self.close()
                raise ExecutionError(f"{path.name} has no {spec.name!r}", f"its names are {sorted(table)}", "Export the model again.")

    def _listen(self) -> None:
        """Read answers until the child ends; None then says so."""
        message = None
        with contextlib.suppress(OSError, ValueError):  # the pipe closes under us when the session ends
            while (message := receive(self._child.stdout)) is not None:
                self._answers.put(message)
        self._answers.put(None)

    def _next(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            message = self._answers.get(timeout=self._answer_seconds)
        except queue.Empty:
            self.close()
            raise ExecutionError(
                f"{self.executed_by} did not answer in {self._answer_seconds:g} s", "it hangs, or the model is too slow here"
            ) from None
        if message is None:
            raise ExecutionError(f"{self.executed_by} ended with code {self._child.wait()} on {self.path.name}", self._last_words())
        if "error" in message[0]:
            raise self._refusal(message[0])
        return message

    def _refusal(self, answer: Mapping[str, Any]) -> ExecutionError:
        missing = [f"{item['op']} version {item['version']}" for item in answer["unsupported"]]
        if missing:
            return ExecutionError(
                f"{self.executed_by} cannot load {self.path.name}",
                f"it has no kernel for {', '.join(missing)}",
                "Rewrite these ops, or use LiteRT on this device.",
            )
        return ExecutionError(f"{self.executed_by} failed on {self.path.name}", " ".join(str(answer["error"]).split())[:300])

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def _ask(self, header: dict[str, Any], arrays: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._child.poll() is None:
            with contextlib.suppress(BrokenPipeError):  # the answer says how the child ended
                send(self._child.stdin, header, arrays)
        return self._next()

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        arrays = {
            str(index): stored(name, inputs[name], dtype, scale, zero_point)
            for name, (index, dtype, scale, zero_point) in self._inputs.items()
        }
        _, found = self._ask({"do": "run"}, arrays)
        return {spec.name: as_float(found[spec.name], *self._outputs[spec.name][2:]) for spec in self.signature.outputs}

    def kernels(self) -> KernelReport:
        """Reads the interpreter's ops after delegation, with the types of their tensors."""
        answer, _ = self._ask({"do": "ops"})
        tensors = {int(index): tensor for index, tensor in answer["tensors"].items()}
        return kernel_report(answer["ops"], tensors, f"tflite-runtime {VERSION} interpreter: ops and tensor types")

    def close(self) -> None:
        """End the child."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class TfliteRuntime(Runtime):
    """Opens .tflite files in tflite-runtime 2.14."""

    name = "tflite-runtime"

    def supports(self) -> Support:
        """Needs the environment that `edgepress doctor --install tflite-runtime` makes."""
        if installed():
            return Support(True, VERSION)
        return Support(False, None, f"tflite-runtime {VERSION} needs numpy < 2 and an environment of its own at {environment()}", COMMAND)

    def timing_unavailable(self) -> str | None:
        """It runs behind a pipe."""
        return (
            "tflite-runtime runs in a child process: the way there and back would count as inference; LiteRT's latency is measured instead"
        )

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        return TfliteSession(folder / artifact.path, artifact.signature, threads)
