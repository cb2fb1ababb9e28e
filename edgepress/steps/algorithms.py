"""Accuracy algorithms of post-training quantization: equalization once for all targets, the others for one runtime's integers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress.targets.nouns import Scheme, Signature

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 32


def equalize(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Move factors per channel between consecutive layers, where that helps the integers of every runtime.

    Args:
        params: `stage`, the value of the `model` step; `runtimes`; and the folders of the `model` and `data` steps in `inputs`.
        folder: receives what a stage has: `model.pt2` and `signature.json`.

    Returns:
        The stage: nothing is counted differently; `pairs`, the names of the layers between which factors moved; and `unbounded`, those of
        the ReLU6 (or other clamps) that became a ReLU.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.quantize.equalize import equalize as balance
    from edgepress.steps.stage import save_stage
    from edgepress.targets.rules import rules_for

    model, data = (Path(params["inputs"][name]) for name in ("model", "data"))
    rules = [rules_for(name) for name in params["runtimes"]]
    result = balance(load_program(model / "model.pt2"), _calibration(data, params["stage"]["signature"]), rules)
    save_stage(result.program, model, data, folder)
    return {**params["stage"], "pairs": [list(pair) for pair in result.pairs], "unbounded": list(result.unbounded)}


def refine(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Refine weights and biases for the integers of one runtime, layer by layer.

    Args:
        params: `runtime`, `scheme`, `algorithms`, `seed`, `signature`, and the folders of the `model`, `data` and `calibration` steps
            in `inputs`.
        folder: receives `statistics`: those of the calibration, with the corrections.

    Returns:
        How many tensors were changed.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.quantize import Statistics
    from edgepress.compress.quantize.layerwise import refine as walk
    from edgepress.compress.quantize.refiners import refiners_of
    from edgepress.targets.rules import rules_for

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    program = load_program(inputs["model"] / "model.pt2")
    tensors = _calibration(inputs["data"], params["signature"])
    before = Statistics.load(inputs["calibration"] / "statistics")
    chosen = refiners_of(params["algorithms"], params["seed"])
    scheme = Scheme(**params["scheme"])
    after = walk(program, before, rules_for(params["runtime"]).of(scheme), scheme, tensors, chosen)
    after.save(folder / "statistics")
    return {"samples": before.samples, "tensors": len(after.corrections)}


def _calibration(data: Path, signature: dict[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    """The calibration samples in batches, by the place of inputs."""
    from edgepress.steps.arrays import batches, load_inputs, tensors

    inputs = Signature.from_json(signature)
    return tensors(batches(load_inputs(data / "calibration", inputs), _BATCH), inputs)
