"""Peak memory of a process that loads and runs one artifact and does nothing else."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Artifact
from edgepress.validators.runtimes import RUNTIMES
from edgepress.validators.runtimes.base import Runtime


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of this process.

    Attributes:
        peak_bytes: the most it ever held: interpreter, runtime library, artifact, inference.
        baseline_bytes: what it held at its peak before the runtime was asked to load anything.
        inferences: how many were run.
    """

    peak_bytes: int
    baseline_bytes: int
    inferences: int

    def to_json(self) -> dict[str, int]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def peak_memory(
    folder: Path | str,
    artifact: Artifact | Mapping[str, Any],
    runtime: str | Runtime,
    samples: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]],
    threads: int = 1,
    batch: int = 1,
    inferences: int = 8,
) -> PeakMemory:
    """Load an artifact and run it; call this in a fresh process, since the kernel's high-water mark covers a whole life.

    Args:
        folder: where the export wrote it.
        artifact: the artifact, or its `to_json()`.
        runtime: name in the table of runtimes, or one already made.
        samples: every input by name or in the order of the signature, dimension 0 is the batch.
        inferences: how many batches of `batch` samples to run; the samples repeat where they do not suffice.

    Raises:
        MeasurementError: no samples, or this system does not tell.
        ExecutionError: the artifact does not load or run.
    """
    described = artifact if isinstance(artifact, Artifact) else Artifact.from_json(artifact)
    names = [spec.name for spec in described.signature.inputs]
    inputs = dict(samples) if isinstance(samples, Mapping) else dict(zip(names, samples, strict=True))
    total = len(next(iter(inputs.values()))) if inputs else 0
    if total == 0 or inferences < 1:
        raise MeasurementError(f"peak memory of {described.target!r} needs at least one sample and one inference", f"got {total}")
    baseline = resident_peak_bytes()
    backend = RUNTIMES.get(runtime)() if isinstance(runtime, str) else runtime
    with backend.open(described, Path(folder), threads) as session:
        for turn in range(inferences):
            rows = (np.arange(batch) + turn * batch) % total
            session.run({name: value[rows] for name, value in inputs.items()})
        peak = resident_peak_bytes()
    return PeakMemory(peak, baseline, inferences)


def resident_peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most resident memory this process ever held, in bytes: VmHWM on Linux, getrusage elsewhere.

    VmHWM comes first because `ru_maxrss` of a child starts at its parent's size on Linux (getrusage(2)).
    """
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return _windows_peak_bytes()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)


def _windows_peak_bytes() -> int:
    import psutil

    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is None:
        raise MeasurementError(
            "peak memory cannot be read", f"{sys.platform} offers neither /proc nor getrusage", "Accept it: `unmeasured`."
        )
    return int(peak)
