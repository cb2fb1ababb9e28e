"""A model between two stages, on disk: the same files and facts as the traced original's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_SAMPLES = 2


def save_stage(program: ExportedProgram, before: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Write `model.pt2` and `signature.json`.

    Args:
        program: with the inputs and outputs of the stage before.
        before: folder of that stage.
        data: folder of the data step, for a sample to count multiply-accumulates with.
        folder: where to write.

    Returns:
        `signature`, `parameters`, `macs` per sample, `size_bytes` of the float weights.
    """
    import torch

    from edgepress.compress.project.model import count_macs, count_parameters
    from edgepress.compress.project.reference import load_share

    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "model.pt2")
    shutil.copyfile(before / "signature.json", folder / "signature.json")
    signature = json.loads((folder / "signature.json").read_text())
    arrays, _ = load_share(data / "validation")
    fixed = signature["inputs"][0]["shape"][0]
    return {
        "signature": signature,
        "parameters": count_parameters(program),
        "macs": count_macs(program, [np.array(a[:_SAMPLES]) for a in arrays], fixed or 1),
        "size_bytes": sum(parameter.numel() * parameter.element_size() for parameter in program.parameters()),
    }
