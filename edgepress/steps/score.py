"""The metric: of the float original, and of an artifact paired with it on the same samples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepress.targets.nouns import Signature

if TYPE_CHECKING:
    from edgepress.validators.metrics import Metric


def original(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The float original's metric on the validation share.

    Args:
        params: `metric`, `root` (of the user's modules), `signature`; `inputs` names the folders of `reference` and `data`.

    Returns:
        `value`, `unit` of a drop, `samples`, `zero_one`: does every sample score 0 or 1?, and `dataset`, the folder hash of the
        validation data.

    Raises:
        MeasurementError: the metric is not a finite number.
    """
    from edgepress.bundle.digest import digest
    from edgepress.steps.arrays import load_outputs
    from edgepress.validators.accuracy import zero_one

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    labels = np.load(inputs["data"] / "validation" / "labels.npy")
    outputs = load_outputs(inputs["reference"] / "validation", Signature.from_json(params["signature"]))
    bound = metric_of_step(params).bind(outputs, labels)
    scores = bound.scores(outputs)
    return {
        "value": bound.value(outputs),
        "unit": bound.unit,
        "samples": bound.samples,
        "zero_one": scores is not None and zero_one(scores),
        "dataset": digest(inputs["data"] / "validation"),
    }


def score(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare outputs with the reference's.

    Args:
        params: `metric`, `root` (of the user's modules), `share`, `confidence`, `signature`; `inputs` names the folders of
            `execution`, `reference` and `data`.

    Returns:
        `value`, `reference`, `drop`, `interval`, `unit`, `samples`, `confidence`, `method`; `scores` per sample
        (`validators.score_bits`) on the validation share, None where the metric has none of 0 and 1.

    Raises:
        MeasurementError: the metric is not a finite number.
    """
    return _compared(params, Path(params["inputs"]["execution"]))


def stage(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same for the outputs that `compress.project.steps:reference` wrote of a model between two steps."""
    return _compared(params, Path(params["inputs"]["execution"]) / params["share"])


def slices(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare outputs with the reference's on every group of validation samples.

    Args:
        params: as `score`; `inputs` names the folder of `groups` too.

    Returns:
        `slices`, and `evidence` of the gate on the worst one.

    Raises:
        MeasurementError: the metric is not a finite number on a slice, which is named.
    """
    from edgepress.steps.arrays import load_outputs
    from edgepress.validators.slices import compare_slices, worst

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    labels = np.load(inputs["data"] / "validation" / "labels.npy")
    outputs = [load_outputs(folder, signature) for folder in (inputs["reference"] / "validation", inputs["execution"])]
    groups = json.loads((inputs["groups"] / "groups.json").read_text())
    found = compare_slices(metric_of_step(params), outputs[0], outputs[1], labels, groups, params["confidence"])
    return {"slices": [part.to_json() for part in found], "evidence": asdict(worst(found))}


def against_most_accurate(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare candidates with the one of them that loses least, paired on the selection share.

    Args:
        params: `metric`, `root`, `confidence`, `signature`, `best` (the name of the most accurate) and `names` of all; `inputs` names
            the folder of `data`, and of each candidate's execution under its name.

    Returns:
        Name -> `drop` against the most accurate and its `interval`.
    """
    from edgepress.steps.arrays import load_outputs
    from edgepress.validators.accuracy import compare

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    labels = np.load(inputs["data"] / "selection" / "labels.npy")
    best = load_outputs(inputs[params["best"]], signature)
    bound = metric_of_step(params).bind(best, labels)
    found = {}
    for name in params["names"]:
        comparison = compare(bound, best, load_outputs(inputs[name], signature), labels, params["confidence"])
        found[name] = {"drop": comparison.drop, "interval": list(comparison.interval)}
    return found


def _compared(params: dict[str, Any], outputs: Path) -> dict[str, Any]:
    from edgepress.steps.arrays import load_outputs
    from edgepress.validators.accuracy import compare
    from edgepress.validators.score_bits import pack

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    signature = Signature.from_json(params["signature"])
    labels = np.load(inputs["data"] / params["share"] / "labels.npy")
    reference, candidate = load_outputs(inputs["reference"] / params["share"], signature), load_outputs(outputs, signature)
    bound = metric_of_step(params).bind(reference, labels)
    found = compare(bound, reference, candidate, labels, params["confidence"])
    paired = params["share"] == "validation" and bound.higher_is_better
    return {
        "value": found.value,
        "reference": found.reference,
        "drop": found.drop,
        "interval": list(found.interval),
        "unit": found.unit,
        "samples": found.samples,
        "confidence": found.confidence,
        "method": found.method,
        "scores": pack(bound.scores(candidate)) if paired else None,
    }


def metric_of_step(params: dict[str, Any]) -> Metric:
    """The recipe's metric: a name, or the user's callable below `root`."""
    from edgepress.compress.project.usercode import load_callable
    from edgepress.validators.metrics import metric_of

    spec = params["metric"]
    return metric_of(load_callable(spec, Path(params["root"])), spec) if ":" in spec else metric_of(spec)
