"""The metric of an artifact's outputs, paired with the float original's on the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.nouns import Signature


def score(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare outputs with the reference's.

    Args:
        params: `metric`, `root` (of the user's modules), `share`, `confidence`, `signature`; `inputs` names the folders of
            `execution`, `reference` and `data`.

    Returns:
        `value`, `reference`, `drop`, `interval`, `unit`, `samples`, `confidence`, `method`.

    Raises:
        MeasurementError: the metric is not a finite number.
    """
    from edgepress.compress.project.usercode import load_callable
    from edgepress.steps.arrays import load_outputs
    from edgepress.validators.accuracy import compare
    from edgepress.validators.metrics import metric_of

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    spec = params["metric"]
    metric = metric_of(load_callable(spec, Path(params["root"])), spec) if ":" in spec else metric_of(spec)
    labels = np.load(inputs["data"] / params["share"] / "labels.npy")
    reference = load_outputs(inputs["reference"] / params["share"], signature)
    found = compare(metric, reference, load_outputs(inputs["execution"], signature), labels, params["confidence"])
    return {
        "value": found.value,
        "reference": found.reference,
        "drop": found.drop,
        "interval": list(found.interval),
        "unit": found.unit,
        "samples": found.samples,
        "confidence": found.confidence,
        "method": found.method,
    }
