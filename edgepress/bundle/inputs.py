"""Reference statistics of a model's inputs: what a device compares live inputs with.

Values of one sample depend on each other, so how far inputs stray by chance is found by drawing whole samples of the calibration
data again (the bootstrap; Efron 1979), not by a formula for independent values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SCHEMA = "edgepress/input-statistics/v1"
NAME = "input_statistics.json"
#: Quantiles of the calibration values between which a histogram's bins lie.
BINS = 40
#: Most frequent values of an integer input that are counted one by one; the others are counted together.
CAP = 255
#: Share of draws that a chance distance is not exceeded by.
CHANCE = 0.99
_GROUPS = 10
_DRAWS = 200
_EDGE_VALUES = 1 << 20
_CHUNK_VALUES = 1 << 22
_COUNTED_VALUES = 1 << 23
_SHOWN = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def reference_statistics(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The content of input_statistics.json.

    Args:
        inputs: calibration samples by input name; dimension 0 is the sample.
    """
    return {"schema": SCHEMA, "samples": len(next(iter(inputs.values()))), "inputs": {name: _one(value) for name, value in inputs.items()}}


def moments(values: np.ndarray) -> dict[str, float | int | None]:
    """Count, mean, standard deviation and extremes of the finite values, and how many are not finite; all of it in one pass.

    `values` may be memory-mapped; mean and deviation are None where no value is finite.
    """
    count, total, squares, low, high, wrong = 0, 0.0, 0.0, np.inf, -np.inf, 0
    shift: float | None = None  # the first value: squares of differences stay accurate far from zero
    for piece in _pieces(values):
        flat = _finite(piece)
        wrong += piece.size - flat.size
        if not flat.size:
            continue
        shift = float(flat[0]) if shift is None else shift
        moved = flat - shift
        count, total, squares = count + flat.size, total + float(moved.sum()), squares + float(np.square(moved).sum())
        low, high = min(low, float(flat.min())), max(high, float(flat.max()))
    if shift is None:
        return {"values": 0, "mean": None, "std": None, "min": None, "max": None, "not_finite": wrong}
    mean = total / count
    deviation = max(squares / count - mean * mean, 0.0) ** 0.5
    return {"values": count, "mean": _short(shift + mean), "std": _short(deviation), "min": low, "max": high, "not_finite": wrong}


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts per sample, int64 of shape (samples, edges + 1): bin i holds edges[i - 1] < value <= edges[i]; the outer ones are open."""
    bins = len(edges) + 1
    counts = []
    for piece in _pieces(values):
        flat = piece.reshape(len(piece), -1).astype(np.float64)
        places = np.searchsorted(edges, flat, side="left") + np.arange(len(flat))[:, None] * bins
        counts.append(np.bincount(places[np.isfinite(flat)], minlength=len(flat) * bins).reshape(len(flat), bins))
    return np.concatenate(counts) if counts else np.zeros((0, bins), np.int64)


def frequencies(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """How often each of `kept` (ascending integers) and any other value occurs per sample: int64 of shape (samples, kept + 1)."""
    counts = []
    for piece in _pieces(values):
        flat = piece.reshape(len(piece), -1).astype(np.int64)
        places = np.minimum(np.searchsorted(kept, flat), len(kept) - 1)
        places = np.where(kept[places] == flat, places, len(kept)) + np.arange(len(flat))[:, None] * (len(kept) + 1)
        counts.append(np.bincount(places.reshape(-1), minlength=len(flat) * (len(kept) + 1)).reshape(len(flat), -1))
    return np.concatenate(counts) if counts else np.zeros((0, len(kept) + 1), np.int64)


def population_stability(reference: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The population stability index (Siddiqi, Credit Risk Scorecards, 2006, ch. 11), along the last axis.

    sum((p - q) ln(p / q)) over bins, which is Jeffreys' divergence (1946); half a count is added to every bin so that an empty one
    has a logarithm.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True) for counts in (reference, live))
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def kolmogorov_smirnov(reference: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The two-sample Kolmogorov-Smirnov distance (Smirnov 1939) at the edges of a histogram, along the last axis.

    The largest difference of the two distribution functions; it is exact at the edges and at most one bin's share too small between.
    """
    shares = [np.cumsum(counts, axis=-1) / np.maximum(counts.sum(axis=-1, keepdims=True), 1) for counts in (reference, live)]
    return np.asarray(np.abs(shares[0] - shares[1]).max(axis=-1))


def coarse(counts: np.ndarray, groups: list[int]) -> np.ndarray:
    """Sums of neighbouring bins; `groups` holds the first bin of each sum."""
    return np.asarray(np.add.reduceat(counts, groups, axis=-1))


def _one(values: np.ndarray) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": values.dtype.name, "shape": list(values.shape[1:]), **moments(values)}
    if not facts["values"]:
        return facts
    some = _sorted_some(values)
    quantiles = np.quantile(some, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique(np.concatenate(([np.nextafter(facts["min"], -np.inf)], quantiles, [facts["max"]])))
    fine = histogram(_thinned(values), edges)
    facts["quantiles"] = {str(share): float(np.quantile(some, share, method="inverted_cdf")) for share in _SHOWN}
    facts["histogram"] = {"edges": edges.tolist(), "counts": fine.sum(axis=0).tolist(), "groups": _groups(fine.sum(axis=0))}
    index = coarse(fine, facts["histogram"]["groups"])
    if values.dtype.kind in "iub":
        found, times = np.unique(_thinned(values).astype(np.int64), return_counts=True)
        kept = np.sort(found[np.lexsort((found, -times))[:CAP]])
        index = frequencies(_thinned(values), kept)
        facts["frequencies"] = {"values": kept.tolist(), "counts": index.sum(axis=0).tolist()}
    facts["chance"] = _chance(fine, index)
    return facts


def _groups(counts: np.ndarray) -> list[int]:
    """Neighbouring bins put together until each sum has a tenth of the values; the two outer bins, which are empty, stay alone."""
    first, held, total = [0, 1], 0, counts.sum()
    for place in range(1, len(counts) - 1):
        if held * _GROUPS >= total:
            first.append(place)
            held = 0
        held += int(counts[place])
    return [*first, len(counts) - 1]


def _chance(fine: np.ndarray, index: np.ndarray) -> list[dict[str, Any]]:
    """Distances that samples of the same data are apart, per number of live samples: 1, 2, 4, … up to all of them."""
    total, rows = len(fine), []
    dice = np.random.default_rng(0)
    even = np.full(total, 1 / total)
    size = 1
    while size <= total:
        again, live = dice.multinomial(total, even, _DRAWS).astype(np.float64), dice.multinomial(size, even, _DRAWS).astype(np.float64)
        psi = population_stability(again @ index, live @ index)
        distance = kolmogorov_smirnov(again @ fine, live @ fine)
        rows.append({"samples": size, "psi": _short(np.quantile(psi, CHANCE)), "ks": _short(np.quantile(distance, CHANCE))})
        size *= 2
    return rows


def _sorted_some(values: np.ndarray) -> np.ndarray:
    """Up to 2**20 finite values, evenly spread over the samples."""
    flat = values.reshape(-1)
    return np.sort(_finite(np.asarray(flat[:: max(1, -(-flat.size // _EDGE_VALUES))])))


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most some eight million values, as many of every sample; an odd step meets every row and column of an image."""
    step = -(-values.size // _COUNTED_VALUES) // 2 * 2 + 1
    return values.reshape(len(values), -1)[:, ::step]


def _finite(piece: np.ndarray) -> np.ndarray:
    flat = np.asarray(piece).reshape(-1).astype(np.float64)
    return flat[np.isfinite(flat)]


def _pieces(values: np.ndarray) -> list[np.ndarray]:
    """Whole samples, a few million values at a time."""
    step = max(1, _CHUNK_VALUES * len(values) // max(values.size, 1))
    return [values[start : start + step] for start in range(0, len(values), step)]


def _short(value: float) -> float:
    """Six digits: what a sum's order may change is not kept."""
    return float(f"{value:.6g}")
