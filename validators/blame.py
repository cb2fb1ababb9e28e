"""Where the accuracy went: stage by stage from the float model to the artifact, and layer by layer. Material of `edgepress explain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError
from edgepress.validators.accuracy import Comparison, compare
from edgepress.validators.metrics import BoundMetric, Metric, Outputs, as_arrays
from edgepress.validators.parity import argmax_agreement, decibels, sqnr_db

Array = NDArray[Any]

#: Noise this low is no damage: `LayerError.lost_db` counts from here.
CLEAN_DB = 60.0


@dataclass(frozen=True)
class StageCost:
    """What one stage cost, paired with the stage before it on the same samples.

    Attributes:
        stage: e.g. `quantized in PyTorch`.
        before: the stage it is compared with.
        value: the metric after it.
        drop, interval, unit: against the stage before; drop > 0 is worse.
        total_drop: against the first stage; the drops of all stages add up to it.
        sqnr_db, argmax_agreement: of the first output, against the stage before.
    """

    stage: str
    before: str
    value: float
    drop: float
    interval: tuple[float, float]
    unit: str
    total_drop: float
    sqnr_db: float
    argmax_agreement: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LayerError:
    """One intermediate tensor of two models.

    Attributes:
        name: in the reference.
        matched: in the candidate.
        shape: of the tensor.
        sqnr_db: signal to noise; low is bad.
        lost_db: how much lower than the lowest of the layers before it (at most `CLEAN_DB`): where this is large, the damage starts.
        max_abs_error: largest difference.
    """

    name: str
    matched: str
    shape: tuple[int, ...]
    sqnr_db: float
    lost_db: float
    max_abs_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def attribute_stages(
    metric: Metric | BoundMetric, stages: Mapping[str, Outputs], labels: Array, confidence: float = 0.95
) -> tuple[StageCost, ...]:
    """What each stage cost, e.g. float -> quantized in PyTorch -> artifact in its runtime.

    Args:
        metric: bound to the first stage, or not yet.
        stages: name -> outputs on the same samples, in order; the first is the reference. At least two.
        labels: the batch in dimension 0.
        confidence: two-sided.

    Raises:
        MeasurementError: fewer than two stages, NaN, or numbers of samples that differ.
    """
    if len(stages) < 2:
        raise MeasurementError(f"{len(stages)} stages cannot be compared", "", "Give the original and what came of it.")
    names, outputs = list(stages), list(stages.values())
    bound = metric if isinstance(metric, BoundMetric) else metric.bind(outputs[0], labels)
    costs, total = [], 0.0
    for index in range(1, len(names)):
        found = compare(bound, outputs[index - 1], outputs[index], labels, confidence)
        total += found.drop
        costs.append(_cost(names[index - 1], names[index], found, total, outputs[index - 1], outputs[index]))
    return tuple(costs)


def _cost(before: str, stage: str, found: Comparison, total: float, first: Outputs, second: Outputs) -> StageCost:
    one, two = as_arrays(first)[0], as_arrays(second)[0]
    noise, agreement = sqnr_db(one, two), argmax_agreement(one, two)
    return StageCost(stage, before, found.value, found.drop, found.interval, found.unit, total, noise, agreement)


def compare_layers(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> tuple[LayerError, ...]:
    """SQNR of every layer that both models show, in the reference's order.

    Layers match by name and shape. What is left over matches by shape alone, first to first, where both sides have the same
    number of left-over tensors of that shape: converters rename, and a wrong match would look like damage.

    Args:
        reference, candidate: name -> tensor on the same inputs. Integer tensors are left out (their scale is not known here).
            A tensor that is NaN in the candidate counts as the worst there is.
    """
    first = {name: value for name, value in reference.items() if _float(value)}
    second = {name: value for name, value in candidate.items() if _float(value)}
    pairs = {name: name for name, value in first.items() if name in second and second[name].shape == value.shape}
    left = [name for name in first if name not in pairs]
    free = [name for name in second if name not in pairs]
    for shape in {first[name].shape for name in left}:
        ours = [name for name in left if first[name].shape == shape]
        theirs = [name for name in free if second[name].shape == shape]
        if len(ours) == len(theirs):
            pairs |= dict(zip(ours, theirs, strict=True))
    errors: list[LayerError] = []
    for name in first:
        if name in pairs:
            errors.append(_layer(name, pairs[name], first[name], second[pairs[name]], errors))
    return tuple(errors)


def worst_layers(errors: Sequence[LayerError], count: int = 10) -> tuple[LayerError, ...]:
    """The layers at which most is lost, worst first."""
    return tuple(sorted(errors, key=lambda error: (-error.lost_db, error.sqnr_db))[:count])


def _layer(name: str, matched: str, first: Array, second: Array, before: Sequence[LayerError]) -> LayerError:
    one, two = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(two)
    broken = bool((np.isfinite(one) & ~finite).any())
    gap = np.where(finite, two, 0.0) - np.where(finite, one, 0.0)
    noise = decibels(0.0, 1.0) if broken else decibels(float(np.sum(np.where(finite, one, 0.0) ** 2)), float(np.sum(gap**2)))
    best = min((error.sqnr_db for error in before), default=CLEAN_DB)
    largest = float(np.finfo(np.float64).max) if broken else float(np.abs(gap).max(initial=0.0))
    return LayerError(name, matched, tuple(first.shape), noise, max(min(best, CLEAN_DB) - noise, 0.0), largest)


def _float(value: Array) -> bool:
    return bool(np.issubdtype(np.asarray(value).dtype, np.floating))
