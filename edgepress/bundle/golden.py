"""What a bundle's golden samples have to reproduce, and how closely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle.npz import load_npz

#: Allowed deviation as a share of the largest golden output. Another CPU may take other kernels: sums in another order in floats;
#: in integers an intermediate that lies between two steps may round to the other one.
SHARE_OF_RANGE = {
    "fp32": 1e-4,
    "fp16": 1e-2,
    "bf16": 3e-2,
    "fp8": 5e-2,
    "int8": 5e-2,
    "int8-weights": 1e-2,
    "int4-weights": 5e-2,
    "mixed": 5e-2,
}
_RTOL = 1e-3


def golden(folder: Path, artifact: str, precision: str) -> dict[str, Any]:
    """The content of golden.json: `|output - golden| <= atol + rtol * |golden|`, element by element.

    Args:
        folder: holds `golden_inputs.npz` and `golden_outputs.npz`.
        artifact: file or folder to load, relative to `folder`.
        precision: one of `edgepress.targets.nouns.PRECISIONS`.
    """
    largest = max((float(np.abs(value).max(initial=0.0)) for value in load_npz(folder / "golden_outputs.npz").values()), default=0.0)
    share = SHARE_OF_RANGE.get(precision, max(SHARE_OF_RANGE.values()))
    return {
        "artifact": artifact,
        "inputs": "golden_inputs.npz",
        "outputs": "golden_outputs.npz",
        "rtol": _RTOL,
        "atol": float(f"{max(share * largest, 1e-6):.3g}"),
    }
