"""Calibration: one pass over the calibration samples, whatever the number of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Signature
from edgepress.targets.progress import track

_BATCH = 32


def calibrate(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Take activation statistics of the float program.

    Args:
        params: `observer`, `signature`, `runtimes` whose integers the statistics are for, and the folders of the `model` and `data` steps
            in `inputs`.
        folder: receives `statistics`.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.quantize import calibrate as take_statistics
    from edgepress.steps.arrays import batches, load_inputs, tensors
    from edgepress.targets.rules import rules_for

    signature = Signature.from_json(params["signature"])
    program = load_program(Path(params["inputs"]["model"]) / "model.pt2")
    samples = load_inputs(Path(params["inputs"]["data"]) / "calibration", signature)
    pieces = tensors(track(batches(samples, _BATCH), "calibrating"), signature)
    statistics = take_statistics(program, pieces, params["observer"], [rules_for(name) for name in params["runtimes"]])
    statistics.save(folder / "statistics")
    return {"samples": len(next(iter(samples.values())))}
