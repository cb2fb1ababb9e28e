"""Loads the .npz and walks its ops."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.nouns import Artifact, KernelReport, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session
from edgepress_numpy.ops import OPS

_COUNTED = {"conv2d", "linear", "add", "mul", "mean", "relu", "batch_norm", "max_pool2d", "adaptive_avg_pool2d"}


class NumpyRuntime(Runtime):
    """Runs everywhere."""

    name = "numpy"
    run_script = Path(__file__).with_name("run.py")

    def supports(self) -> Support:
        """NumPy is always there."""
        return Support(True, np.__version__)

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        return NumpySession(artifact, folder / artifact.path)


class NumpySession(Session):
    """The ops in order, values by name."""

    def __init__(self, artifact: Artifact, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self._arrays = {name: file[name] for name in file.files}
        self._ops: list[dict[str, Any]] = json.loads(str(self._arrays.pop("ops")))
        self.signature = artifact.signature
        self.executed_by = f"numpy {np.__version__}"

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = dict(self._arrays)
        names = iter(spec.name for spec in self.signature.inputs)
        for line in self._ops:
            if line["op"] == "input":
                values[line["name"]] = inputs[next(names)]
            elif line["op"] == "output":
                return {spec.name: _fill(ref, values) for spec, ref in zip(self.signature.outputs, line["args"], strict=True)}
            else:
                values[line["name"]] = OPS[line["op"]](*_fill(line["args"], values), **_fill(line["kwargs"], values))
        raise ValueError("the file has no output")

    def kernels(self) -> KernelReport:
        """Everything is computed in float32: integers are only stored, which the report says."""
        counts = Counter(line["op"] for line in self._ops if line["op"] in _COUNTED)
        return KernelReport(0, 0, sum(counts.values()), 0, 0.0, "the op list of the file")


def _fill(value: Any, values: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return values[value["ref"]] if set(value) == {"ref"} else {k: _fill(v, values) for k, v in value.items()}
    return [_fill(v, values) for v in value] if isinstance(value, list) else value
