"""A runtime's own quantizer on the float artifact of a target, in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Artifact, Scheme, Signature, Target
from edgepress.targets.progress import progress


def quantize(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the artifact of one native quantizer.

    Args:
        params: `quantizer`, `target`, `scheme`, `signature`, and of the float export `artifact` and `parity_source`; `inputs` names the
            folders of `float_export` and `data`.
        folder: receives `artifact/` and `parity/`: what the float model computes, for there is no quantized PyTorch model beside it.

    Returns:
        The artifact as JSON, and which model `parity/` came from.
    """
    from edgepress.exporters.native import NATIVE
    from edgepress.exporters.native.base import NativeRequest
    from edgepress.steps.arrays import load_inputs

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    request = NativeRequest(
        source=Artifact.from_json(params["artifact"]),
        folder=inputs["float_export"] / "artifact",
        target=Target(**params["target"]),
        scheme=Scheme(**params["scheme"]),
        calibration=load_inputs(inputs["data"] / "calibration", Signature.from_json(params["signature"])),
    )
    progress(f"quantizing with {params['quantizer']}")
    artifact = NATIVE.get(params["quantizer"])().quantize(request, folder / "artifact")
    shutil.copytree(inputs["float_export"] / "parity", folder / "parity")
    return {"artifact": artifact.to_json(), "parity_source": params["parity_source"]}
