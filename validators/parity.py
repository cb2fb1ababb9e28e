"""How close an artifact's outputs are to those of the model it was made from. Facts, not verdicts: accuracy decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError

Array = NDArray[Any]

#: Reported for equal outputs, whose ratio is infinite and has no JSON number; float64 itself ends near 313 dB.
SQNR_CAP_DB = 200.0


def compare_outputs(candidate: Mapping[str, Array], reference: Mapping[str, Array]) -> dict[str, float]:
    """Compare outputs by name.

    Args:
        candidate: name -> array.
        reference: the same names and shapes; the first one is the model's main output.

    Returns:
        The `parity` object of `report.json`: `max_abs_error`, the largest absolute difference over all outputs; `sqnr_db`,
        signal to quantization noise, 10 log10(sum reference^2 / sum difference^2) over all outputs, within +-`SQNR_CAP_DB`;
        `argmax_agreement` of the first output.

    Raises:
        MeasurementError: no outputs, names or shapes that differ, NaN, or an infinity on one side only.
    """
    if not reference:
        raise MeasurementError("there are no outputs to compare")
    if set(reference) != set(candidate):
        raise MeasurementError(f"outputs are {sorted(candidate)}, not {sorted(reference)}", "", "Export with the model's names.")
    worst, signal, noise = 0.0, 0.0, 0.0
    for name, value in reference.items():
        first, second = _comparable(name, value, candidate[name])
        gap = second - first
        worst = max(worst, float(np.abs(gap).max(initial=0.0)))
        signal, noise = signal + float(np.sum(first**2)), noise + float(np.sum(gap**2))
    main = next(iter(reference))
    agreement = argmax_agreement(reference[main], candidate[main])
    return {"max_abs_error": worst, "sqnr_db": decibels(signal, noise), "argmax_agreement": agreement}


def sqnr_db(reference: Array, candidate: Array) -> float:
    """SQNR of one tensor in dB, within +-`SQNR_CAP_DB`."""
    first, second = _comparable("tensor", reference, candidate)
    return decibels(float(np.sum(first**2)), float(np.sum((second - first) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within +-`SQNR_CAP_DB`: equal outputs give the upper end, noise on a zero signal the lower."""
    if noise == 0:
        return SQNR_CAP_DB
    if signal == 0:
        return -SQNR_CAP_DB
    return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -SQNR_CAP_DB, SQNR_CAP_DB))


def argmax_agreement(reference: Array, candidate: Array) -> float:
    """Share of positions with the same decision.

    (n, classes) and (n, classes, ...) compare the argmax over dimension 1. One number per sample, (n,) or (n, 1), is read as
    a binary logit and compares signs; for a regression that says little, and for outputs that are all positive it is 1.0.
    """
    first, second = np.asarray(reference), np.asarray(candidate)
    if first.size == 0:
        raise MeasurementError("there are no samples to compare")
    if first.ndim >= 2 and first.shape[1] > 1:
        return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))
    return float(np.mean((first > 0) == (second > 0)))


def _comparable(name: str, reference: Array, candidate: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if first.shape != second.shape:
        raise MeasurementError(f"output {name!r} has shape {second.shape}, the reference {first.shape}")
    for who, array in (("the reference's", first), ("the candidate's", second)):
        if np.isnan(array).any():
            raise MeasurementError(f"{who} output {name!r} holds {np.count_nonzero(np.isnan(array))} NaN of {array.size} values")
    endless = np.isinf(first) | np.isinf(second)
    if endless.any():
        if not np.array_equal(first[endless], second[endless]):
            raise MeasurementError(f"output {name!r} is infinite on one side only")
        first, second = np.where(endless, 0.0, first), np.where(endless, 0.0, second)
    return first, second
