"""What calibration inputs look like, for devices that watch theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Signature


def statistics(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the reference statistics of the calibration share.

    Args:
        params: `signature`, and the folder of the `data` step in `inputs`.
        folder: receives `input_statistics.json`.
    """
    from edgepress.bundle.inputs import NAME, reference_statistics
    from edgepress.steps.arrays import load_inputs

    signature = Signature.from_json(params["signature"])
    found = reference_statistics(load_inputs(Path(params["inputs"]["data"]) / "calibration", signature))
    (folder / NAME).write_text(json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n", "utf-8")
    return {"samples": found["samples"]}
