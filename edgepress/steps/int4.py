"""Weights in 4 bits: once for all targets whose kernels take the same groups and symmetry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Signature

_BATCH = 16


def quantize(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Round the weights of a float program to 4 bits, group by group.

    Args:
        params: `method`, `group`, `signature`, `rules` (fields of `targets.rules.Int4Rules`), and the folders of the `model` and
            `data` steps in `inputs`.
        folder: receives `model.pt2`, which takes and returns what the float program does.

    Returns:
        The signature, and how many layers have which group: `{"signature": …, "groups": {layer: inputs per scale}}`.
    """
    import torch

    from edgepress.compress.program import load_program
    from edgepress.compress.quantize import Int4Options, quantize_int4
    from edgepress.steps.arrays import batches, load_inputs, tensors
    from edgepress.targets.rules import Int4Rules

    signature = Signature.from_json(params["signature"])
    program = load_program(Path(params["inputs"]["model"]) / "model.pt2")
    samples = load_inputs(Path(params["inputs"]["data"]) / "calibration", signature)
    rules = Int4Rules(**{**params["rules"], "groups": tuple(params["rules"]["groups"])})
    options = Int4Options(rules, params["method"], params["group"])
    pieces = batches(samples, _BATCH)
    result = quantize_int4(program, options, lambda: tensors(pieces, signature))
    torch.export.save(result.program, folder / "model.pt2")
    return {"signature": params["signature"], "groups": result.groups}
