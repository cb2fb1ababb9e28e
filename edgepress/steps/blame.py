"""Where in the net the damage of quantization starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Scheme, Signature

#: A mean square needs no more; every answer of both models is held for all of them.
_SAMPLES = 32


def layers(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare what every layer answers in the float model and in its rendering for one runtime, on the first validation samples.

    Args:
        params: `runtime`, `scheme`, `signature`; `inputs` names the folders of `data`, `model` (float), with static schemes
            `calibration`, and with 4-bit weights `rounded`, the model that has them.
        folder: receives nothing.

    Returns:
        `layers`: one mapping per layer with the fields of `LayerError`, its module in the user's model (`layer`) and its `op`, the
        worst first; `samples` that were run.
    """
    import torch

    from edgepress.compress.quantize import Statistics
    from edgepress.compress.quantize.side_by_side import SideBySide
    from edgepress.steps.arrays import load_inputs
    from edgepress.targets.rules import rules_for
    from edgepress.validators.blame import compare_layers, worst_layers

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature, scheme, rules = Signature.from_json(params["signature"]), Scheme(**params["scheme"]), rules_for(params["runtime"])
    program = inputs["model"] / "model.pt2"
    if "rounded" in inputs:
        models = SideBySide.of_int4(program, inputs["rounded"] / "model.pt2", rules)
    else:
        statistics = Statistics.load(inputs["calibration"] / "statistics") if "calibration" in inputs else None
        models = SideBySide.of(program, statistics, rules, scheme)
    count = signature.inputs[0].shape[0] or models.samples(_SAMPLES)
    samples = load_inputs(inputs["data"] / "validation", signature, count)
    exact, rendered = models.answers([torch.from_numpy(samples[spec.name].copy()) for spec in signature.inputs])
    places = models.places()
    errors = compare_layers(exact, rendered)
    found = [
        error.to_json() | dict(zip(("layer", "op"), places[error.name], strict=True)) for error in worst_layers(errors, count=len(errors))
    ]
    return {"layers": found, "samples": len(next(iter(samples.values())))}
