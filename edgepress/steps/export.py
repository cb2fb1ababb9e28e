"""Export of one scheme for one target, and what the same compressed model computes in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.nouns import Scheme, Signature, Target
from edgepress.targets.progress import progress

PARITY_SAMPLES = 256
_TRACE_SAMPLES = 8


def export(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the artifact of one target.

    Args:
        params: `target`, `scheme`, `signature`; `inputs` names the folders of `model`, `data` and, for static schemes, `calibration`.
        folder: receives `artifact/` and `parity/` (outputs of the compressed PyTorch model on the first validation samples).

    Returns:
        The artifact as JSON, and which model `parity/` came from.
    """
    from edgepress.exporters import EXPORTERS
    from edgepress.exporters.base import ExportRequest
    from edgepress.steps.arrays import load_inputs, save_outputs

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    validation = load_inputs(inputs["data"] / "validation", signature, PARITY_SAMPLES)
    request = ExportRequest(
        program=inputs["model"] / "model.pt2",
        signature=signature,
        statistics=inputs["calibration"] / "statistics" if "calibration" in inputs else None,
        target=Target(**params["target"]),
        scheme=Scheme(**params["scheme"]),
        samples=tuple(np.array(value[:_TRACE_SAMPLES]) for value in validation.values()),
    )
    exporter = EXPORTERS.get(request.target.runtime)()
    progress(f"exporting {request.scheme.label}")
    artifact = exporter.export(request, folder / "artifact")
    progress("running the compressed PyTorch model")
    outputs, source = exporter.compressed_outputs(request, tuple(validation.values()))
    save_outputs(folder / "parity", outputs)
    return {"artifact": artifact.to_json(), "parity_source": source}
