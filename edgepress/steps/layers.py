"""The latency table of a model's layers in one runtime: measured once, used by every pruning to a latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.nouns import Signature

_SAMPLES = 8


def latencies(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the model and each of its layers at several widths, in fp32 or int8.

    Args:
        params: `runtime`, `threads`, `batch`, `precision` (`fp32` or `int8`), `multiple` (widths that pruning will land on);
            `inputs` names the folders of `model` and `data`.
        folder: nothing is left in it.

    Returns:
        The table (`compress.prune.latency.LatencyTable.from_json` reads it).

    Raises:
        RuntimeUnavailable: exporter or runtime is missing.
        MeasurementError: times cannot be taken on this machine.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.prune import analyse
    from edgepress.steps.arrays import load_inputs
    from edgepress.validators.layer_bench import FP32, INT8, LayerPlan
    from edgepress.validators.layer_latency import measure_layers

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    program = inputs["model"] / "model.pt2"
    signature = Signature.from_json(json.loads((inputs["model"] / "signature.json").read_text()))
    found = load_inputs(inputs["data"] / "calibration", signature, max(_SAMPLES, params["batch"]))
    rows = np.arange(max(_SAMPLES, params["batch"])) % len(next(iter(found.values())))
    samples = tuple(np.ascontiguousarray(value[rows]) for value in found.values())
    scheme = INT8 if params["precision"] == "int8" else FP32
    plan = LayerPlan(params["runtime"], params["threads"], params["batch"], params["multiple"], scheme=scheme)
    return measure_layers(program, analyse(load_program(program)), signature, samples, plan).to_json()
