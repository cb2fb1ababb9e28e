"""How much each layer's integers cost on the samples that choose between schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Scheme, Signature

_BATCH = 32


def sensitivity(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure every layer of a rendering alone in integers.

    Args:
        params: `runtime`, `scheme`, `samples` (how many at most), `signature`, and the folders of the `model`, `data` and `calibration`
            steps in `inputs`.
        folder: receives nothing.

    Returns:
        `layers`: one mapping per layer with the fields of `Sensitivity`; `samples` that were run.
    """
    import torch

    from edgepress.compress.quantize import Statistics
    from edgepress.compress.quantize.sensitivity import sensitivities
    from edgepress.steps.arrays import batches, load_inputs
    from edgepress.targets.rules import rules_for

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    samples = load_inputs(inputs["data"] / "selection", signature, params["samples"])
    tensors = (tuple(torch.from_numpy(piece[s.name].copy()) for s in signature.inputs) for piece in batches(samples, _BATCH))
    program = torch.export.load(inputs["model"] / "model.pt2")
    statistics = Statistics.load(inputs["calibration"] / "statistics")
    found = sensitivities(program, statistics, rules_for(params["runtime"]), Scheme(**params["scheme"]), tensors)
    return {"layers": [layer.to_json() for layer in found], "samples": len(next(iter(samples.values())))}
