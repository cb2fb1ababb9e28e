"""Core ML: the real runtime on a Mac; anywhere else a reference executor of the saved package, and reports say so."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.coreml_import import coremltools
from edgepress.targets.nouns import Artifact, KernelReport, Signature, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session


def on_mac() -> bool:
    """Is this a system with a Core ML runtime?"""
    return sys.platform == "darwin"


class CoreMl(Runtime):
    """Opens .mlpackage folders.

    Args:
        compute_units: on a Mac, `ALL` (Neural Engine, GPU and CPU as Core ML chooses) or `CPU_ONLY`.
    """

    name = "coreml"

    def __init__(self, compute_units: str = "ALL") -> None:
        self.compute_units = compute_units

    def supports(self) -> Support:
        """coremltools reads packages on every system; torch computes where Core ML is not there."""
        for package in ("coremltools", "torch"):
            try:
                version(package)
            except PackageNotFoundError:
                return Support(False, missing=f"{package} is not installed", install="pip install 'edgepress[coreml]'")
        return Support(True, f"coremltools {version('coremltools')}")

    def timing_unavailable(self) -> str | None:
        """Core ML runs on Apple systems alone; the time of the reference executor says nothing about it."""
        return None if on_mac() else "latency of an .mlpackage needs a Mac"

    def peak_unavailable(self) -> str | None:
        """The peak that is measured is the processor's."""
        return "Core ML chooses between processor, GPU and Neural Engine"

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        package = folder / artifact.path
        if on_mac():
            return DeviceSession(package, artifact.signature, self.compute_units)
        return ReferenceSession(package, artifact.signature, threads)


class _PackageSession(Session):
    """What both sessions share: the program, for reading which ops run in integers."""

    package: Path
    _loaded: Any = None

    @property
    def program(self) -> Any:
        """The package as a `mil.program.MilProgram`, loaded at first use."""
        if self._loaded is None:
            from edgepress.validators.runtimes.mil.program import MilProgram

            self._loaded = MilProgram.load(self.package)
        return self._loaded

    def kernels(self) -> KernelReport:
        """Read from the ops and types of the package; Core ML does not reveal what a device executes."""
        from edgepress.validators.runtimes.mil.kernels import kernel_report

        return kernel_report(self.program)

    def close(self) -> None:
        """Release constants and graph."""
        self._loaded = None


class DeviceSession(_PackageSession):
    """Core ML itself.

    Args:
        package: the .mlpackage.
        signature: as exported; the batch is fixed.
        compute_units: `ALL`, `CPU_ONLY`, `CPU_AND_GPU` or `CPU_AND_NE`.
    """

    def __init__(self, package: Path, signature: Signature, compute_units: str = "ALL") -> None:
        ct = coremltools()
        self.package, self.signature = package, signature
        self._model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[compute_units])
        self.executed_by = f"Core ML ({compute_units}), coremltools {version('coremltools')}"

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        found = self._model.predict(_typed(inputs, self.signature))
        return {spec.name: np.asarray(found[spec.name]).astype(spec.dtype) for spec in self.signature.outputs}


class ReferenceSession(_PackageSession):
    """The package, op by op in torch: float32 compute, every result rounded to the type the package declares.

    Takes any batch: samples (or groups of as many as the package declares) run independently of each other, see
    `MilProgram.run_samples`.

    Args:
        package: the .mlpackage.
        signature: as exported.
        threads: torch's intra-op threads while it runs.
    """

    def __init__(self, package: Path, signature: Signature, threads: int = 1) -> None:
        self.package, self.threads = package, threads
        self.fixed = int(signature.inputs[0].shape[0] or 1)
        self._declared = signature
        self.signature = Signature(
            tuple(replace(spec, shape=(None, *spec.shape[1:])) for spec in signature.inputs),
            tuple(replace(spec, shape=(None, *spec.shape[1:])) for spec in signature.outputs),
        )
        types = {out.dtype for step in self.program.steps for out in step.outputs}
        rounding = "fp16 rounding" if "fp16" in types else "fp32"
        self.executed_by = f"Core ML reference executor (MIL op by op in torch, {rounding}), coremltools {version('coremltools')}"

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._batched(inputs, watch=False, names=[spec.name for spec in self._declared.outputs])

    def layers(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every float tensor of the program by name (the exporter's `_cast_fp16` suffix taken off), dimension 0 the batch."""
        floats = [out.name for step in self.program.steps for out in step.outputs if out.dtype in ("fp16", "fp32")]
        found = self._batched(inputs, watch=True, names=floats)
        return {name.removesuffix("_cast_fp16"): value for name, value in found.items()}

    def _batched(self, inputs: Arrays, *, watch: bool, names: list[str]) -> dict[str, np.ndarray]:
        """Group samples by the declared batch (the last group filled up with its last sample) and run groups together."""
        import torch

        typed = _typed(inputs, self._declared)
        total = len(next(iter(typed.values())))
        groups = -(-total // self.fixed)
        missing = groups * self.fixed - total
        feeds = {}
        for name, value in typed.items():
            full = np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) if missing else value
            feeds[name] = torch.from_numpy(np.ascontiguousarray(full).reshape(groups, self.fixed, *full.shape[1:]))
        at_once, before = self.program.samples_at_once, torch.get_num_threads()
        pieces: list[dict[str, np.ndarray]] = []
        torch.set_num_threads(self.threads)
        try:
            with torch.no_grad():
                for start in range(0, groups, at_once):
                    piece = {name: value[start : start + at_once] for name, value in feeds.items()}
                    found = self.program.run_samples(piece, watch=watch)
                    pieces.append({name: found[name].numpy() for name in names})
        finally:
            torch.set_num_threads(before)
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        return {name: _ungrouped(value, self.fixed)[:total] for name, value in joined.items()}


def _ungrouped(value: np.ndarray, batch: int) -> np.ndarray:
    """(groups, batch, ...) -> (samples, ...); a tensor without a batch dimension keeps one entry per group."""
    if value.ndim > 1 and value.shape[1] == batch:
        return value.reshape(-1, *value.shape[2:])
    return value


def _typed(inputs: Arrays, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs in the types of the package: int64 token ids become int32."""
    return {spec.name: np.asarray(inputs[spec.name]).astype(spec.dtype, copy=False) for spec in signature.inputs}
