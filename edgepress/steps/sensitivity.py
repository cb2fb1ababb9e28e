"""How much each layer's integers cost on the samples that choose between schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.targets.nouns import Scheme, Signature

_BATCH = 32


def sensitivity(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure every layer of a rendering alone in integers.

    Args:
        params: `runtime`, `scheme`, `samples` (how many at most), `narrow` (bits below 8 that are measured too, and with any of them
            tables), `signature`, and the folders of the `model`, `data` and `calibration` steps in `inputs`.
        folder: receives nothing.

    Returns:
        `layers`: one mapping per layer with the fields of `Sensitivity`, in the order of the graph; `order`: the nodes that can stay
        float, those that float serves best first; `samples` that were run.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.quantize import Statistics
    from edgepress.compress.quantize.fallback import ranked
    from edgepress.compress.quantize.sensitivity import TABLE, sensitivities
    from edgepress.steps.arrays import batches, load_inputs, tensors
    from edgepress.targets.rules import rules_for

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    samples = load_inputs(inputs["data"] / "selection", signature, params["samples"])
    calibration = batches(load_inputs(inputs["data"] / "calibration", signature), _BATCH)
    program = load_program(inputs["model"] / "model.pt2")
    statistics = Statistics.load(inputs["calibration"] / "statistics")
    scheme = Scheme(**params["scheme"])
    rules, pieces = rules_for(params["runtime"]).of(scheme), tensors(batches(samples, _BATCH), signature)
    found = sensitivities(program, statistics, rules, scheme, pieces, params["narrow"], lambda: tensors(calibration, signature))
    order = [layer.node for layer in ranked([layer for layer in found if layer.kind != TABLE])]
    return {"layers": [layer.to_json() for layer in found], "order": order, "samples": len(next(iter(samples.values())))}


def assign(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Choose a precision for every layer.

    Args:
        params: `layers` of the step above and `float_bytes` of one weight; `room`: bytes beyond the weights in 8 bits, or None for
            every assignment that is worth trying. With `costs` of time (`mixed.within_time`) `room` is time.
        folder: receives nothing.

    Returns:
        `assignments`: mappings of `float_layers`, `int4_layers` and `int2_layers` to nodes; where `room` is given one, or none that takes
        as little.
    """
    from dataclasses import asdict

    from edgepress.compress.quantize.mixed import front, within, within_time
    from edgepress.compress.quantize.sensitivity import Sensitivity

    layers, room = [Sensitivity(**layer) for layer in params["layers"]], params["room"]
    if room is None:
        return {"assignments": [asdict(assignment) for assignment in front(layers, params["float_bytes"])]}
    found = within_time(layers, params["costs"], room) if "costs" in params else within(layers, params["float_bytes"], room)
    return {"assignments": [] if found is None else [asdict(found)]}
