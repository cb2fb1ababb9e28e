"""Run one artifact in its runtime over a whole share of the data, and ask the runtime which kernels it used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.machine import own_threads
from edgepress.targets.nouns import Artifact, Signature
from edgepress.targets.progress import track

_BATCH = 64
GOLDEN_SAMPLES = 8


def execute(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run an artifact.

    Args:
        params: `runtime`, `artifact`, `signature` (the model's), `share` (`selection` or `validation`); `inputs` names the folders
            of `export` and `data`. All cores are used: how many there are is part of the machine that the result is for.
        folder: receives `output_*.npy`; on the validation share also `golden_inputs.npz` and `golden_outputs.npz`.

    Returns:
        `executed_by`, the kernel report, and on the validation share the parity with the compressed PyTorch model.

    Raises:
        ExecutionError: the runtime refused the artifact, failed, or returned a NaN.
    """
    from edgepress.bundle.npz import save_npz
    from edgepress.steps.arrays import batches, load_inputs, load_outputs, save_outputs
    from edgepress.validators.parity import compare_outputs
    from edgepress.validators.runtimes import RUNTIMES

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    artifact = Artifact.from_json(params["artifact"])
    samples = load_inputs(inputs["data"] / params["share"], signature)
    runtime = RUNTIMES.get(params["runtime"])()
    with runtime.open(artifact, inputs["export"] / "artifact", own_threads()) as session:
        pieces = [session.run(piece) for piece in track(batches(samples, _BATCH), f"running the {params['share']} samples")]
        kernels = session.kernels()
        outputs = {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in signature.outputs}
        value: dict[str, Any] = {"executed_by": session.executed_by, "kernels": kernels.to_json()}
    save_outputs(folder, list(outputs.values()))
    if params["share"] == "validation":
        expected = load_outputs(inputs["export"] / "parity", signature)
        count = len(next(iter(expected.values())))
        value["parity"] = compare_outputs({name: v[:count] for name, v in outputs.items()}, expected)
        save_npz(folder / "golden_inputs.npz", {name: v[:GOLDEN_SAMPLES] for name, v in samples.items()})
        save_npz(folder / "golden_outputs.npz", {name: v[:GOLDEN_SAMPLES] for name, v in outputs.items()})
    return value
