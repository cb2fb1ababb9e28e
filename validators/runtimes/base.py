"""The contract of every runtime: open an artifact, run it, prove which kernels ran. Imports numpy and nothing heavier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from edgepress.targets.errors import EdgepressError, ExecutionError, RuntimeUnavailable
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support

Arrays = Mapping[str, np.ndarray]


class Session(ABC):
    """An artifact loaded into a runtime.

    Attributes:
        signature: inputs and outputs; a first dimension of None takes any batch, a number only that batch.
        executed_by: what really computes, with its version: `onnxruntime 1.32.0 CPU`, or
            `onnxruntime 1.32.0 CPU (same graph; engine not executed)`. Reports print it.
    """

    signature: Signature
    executed_by: str

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a whole batch; where the artifact's batch is fixed, run it piece by piece.

        Args:
            inputs: every input by name, dimension 0 is the batch; float inputs are float32.

        Returns:
            Every output by name, float outputs as float32, dimension 0 is the batch.

        Raises:
            ExecutionError: the runtime refused the inputs or failed.
        """
        fixed = self.signature.inputs[0].shape[0]
        total = len(next(iter(inputs.values())))
        if fixed is None or fixed == total:
            return self._checked(inputs)
        pieces = []
        for start in range(0, total, fixed):
            piece = {name: value[start : start + fixed] for name, value in inputs.items()}
            real = len(next(iter(piece.values())))
            if real < fixed:
                piece = {name: np.concatenate([v, np.repeat(v[-1:], fixed - real, axis=0)]) for name, v in piece.items()}
            pieces.append({name: value[:real] for name, value in self._checked(piece).items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _checked(self, inputs: Arrays) -> dict[str, np.ndarray]:
        try:
            return self._run_impl(inputs)
        except EdgepressError:
            raise
        except Exception as error:  # any failure of a foreign runtime is this target's execution error
            raise ExecutionError(f"{self.executed_by} failed", f"{type(error).__name__}: {error}") from error

    @abstractmethod
    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]: ...

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """A call that runs one inference on inputs already in place: what latency measures."""
        held = dict(inputs)
        return lambda: self._run_impl(held)

    @abstractmethod
    def kernels(self) -> KernelReport:
        """How many ops run in int8, fp16 and fp32, read from the runtime's own view of the loaded artifact."""

    def layers(self, inputs: Arrays) -> dict[str, np.ndarray] | None:
        """Intermediate tensors by name where the runtime exposes them, else None."""
        return None

    def close(self) -> None:  # noqa: B027 - optional: most runtimes hold nothing beyond this object
        """Release what the runtime holds."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Runtime(ABC):
    """Opens artifacts of one kind."""

    name: str

    @abstractmethod
    def supports(self) -> Support:
        """Is the runtime usable here? If not, what is missing and the command that installs it."""

    def timing_unavailable(self) -> str | None:
        """Why latency of this runtime cannot be measured on this machine (None when it can)."""
        return None

    def peak_unavailable(self) -> str | None:
        """Why the peak of this machine's processor says nothing about this runtime's latency (None where it runs on it)."""
        return None

    def open(self, artifact: Artifact, folder: Path, threads: int = 1) -> Session:
        """Load an artifact.

        Args:
            artifact: its paths are relative to `folder`.
            folder: where the export wrote it.
            threads: intra-op threads.

        Raises:
            RuntimeUnavailable: the runtime is not installed.
            ExecutionError: it refuses the artifact.
        """
        support = self.supports()
        if not support.usable:
            raise RuntimeUnavailable(f"runtime {self.name!r} is not usable here", support.missing or "", f"Run: {support.install}")
        try:
            return self._open_impl(artifact, folder, threads)
        except EdgepressError:
            raise
        except Exception as error:  # any failure of a foreign runtime is this target's execution error
            raise ExecutionError(f"{self.name} cannot load {artifact.path!r}", f"{type(error).__name__}: {error}") from error

    @abstractmethod
    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session: ...
