"""Accuracy algorithms of post-training quantization: equalization once for all targets, the others for one runtime's integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Scheme, Signature

_BATCH = 32


def equalize(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Balance the channel ranges of consecutive layers.

    Args:
        params: `stage`, the value of the `model` step, and the folders of the `model` and `data` steps in `inputs`.
        folder: receives what a stage has: `model.pt2` and `signature.json`.

    Returns:
        The stage: nothing is counted differently; and `pairs`, the names of the layers that were balanced.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.quantize.equalize import equalize as balance
    from edgepress.steps.stage import save_stage

    model, data = (Path(params["inputs"][name]) for name in ("model", "data"))
    result = balance(load_program(model / "model.pt2"))
    save_stage(result.program, model, data, folder)
    return {**params["stage"], "pairs": [list(pair) for pair in result.pairs]}


def refine(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Refine weights and biases for the integers of one runtime, layer by layer.

    Args:
        params: `runtime`, `scheme`, `algorithms`, `seed`, `signature`, and the folders of the `model`, `data` and `calibration` steps
            in `inputs`.
        folder: receives `statistics`: those of the calibration, with the corrections.

    Returns:
        How many tensors were changed.
    """
    import torch

    from edgepress.compress.program import load_program
    from edgepress.compress.quantize import Statistics
    from edgepress.compress.quantize.layerwise import refine as walk
    from edgepress.compress.quantize.refiners import refiners_of
    from edgepress.steps.arrays import batches, load_inputs
    from edgepress.targets.rules import rules_for

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    program = load_program(inputs["model"] / "model.pt2")
    samples = load_inputs(inputs["data"] / "calibration", signature)
    tensors = (tuple(torch.from_numpy(piece[s.name].copy()) for s in signature.inputs) for piece in batches(samples, _BATCH))
    before = Statistics.load(inputs["calibration"] / "statistics")
    chosen = refiners_of(params["algorithms"], params["seed"])
    scheme = Scheme(**params["scheme"])
    after = walk(program, before, rules_for(params["runtime"]).of(scheme), scheme, tensors, chosen)
    after.save(folder / "statistics")
    return {"samples": before.samples, "tensors": len(after.corrections)}
