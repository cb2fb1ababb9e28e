"""Percentiles of latency, printed only where the count supports them.

MLPerf Inference rules, "Early stopping criterion" (policies/inference_rules.adoc, appendix): with n measured latencies of
which t lie over a bound, the bound holds for the percentile p at confidence c when P(Binomial(n, 1 - p) <= t) <= 1 - c.
With t = 1 and c = 0.99 the smallest n is 64 for p90 and 662 for p99, the numbers of the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError
from edgepress.validators.intervals import Interval, z_score

CONFIDENCE = 0.99


def fewest_samples(percentile: float, confidence: float = CONFIDENCE, over: int = 1) -> int:
    """The smallest n that supports a percentile with `over` latencies above it.

    Args:
        percentile: in (0, 1), e.g. 0.9.
    """
    low, high = over + 1, over + 2
    while _binomial_tail(high, 1 - percentile, over) > 1 - confidence:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if _binomial_tail(middle, 1 - percentile, over) <= 1 - confidence:
            high = middle
        else:
            low = middle + 1
    return low


def percentile_ms(times_ms: Sequence[float] | NDArray[Any], percentile: float) -> float | None:
    """A percentile of latencies in ms (the median always), or None where `fewest_samples` are not there.

    Raises:
        MeasurementError: no latencies, or one that is not a positive finite number.
    """
    times = np.asarray(times_ms, dtype=np.float64)
    if times.size == 0 or not np.all(np.isfinite(times)) or bool(np.any(times <= 0)):
        raise MeasurementError(f"{times.size} latencies were taken", "there is none, or one is not a positive number", "Measure again.")
    if percentile > 0.5 and len(times) < fewest_samples(percentile):
        return None
    return float(np.quantile(times, percentile))


def percentile_interval(times_ms: NDArray[np.float64], percentile: float, confidence: float = 0.95) -> Interval:
    """Distribution-free interval of a percentile from order statistics (Conover 1999, "Practical nonparametric statistics",
    section 3.2), in the normal approximation of the ranks; it contains the empirical percentile.
    """
    times, total = np.sort(times_ms), len(times_ms)
    spread = z_score(confidence) * math.sqrt(total * percentile * (1 - percentile))
    low = max(math.floor(total * percentile - spread), 0)
    high = min(math.ceil(total * percentile + spread), total - 1)
    point = float(np.quantile(times, percentile))
    return min(float(times[low]), point), max(float(times[high]), point)


def latency_summary(times_ms: NDArray[np.float64], threads: int, batch: int) -> dict[str, Any]:
    """The `latency_ms` object of `report.json`."""
    return {
        "p50": percentile_ms(times_ms, 0.5),
        "p90": percentile_ms(times_ms, 0.9),
        "p99": percentile_ms(times_ms, 0.99),
        "samples": len(times_ms),
        "threads": threads,
        "batch": batch,
    }


def _binomial_tail(total: int, chance: float, most: int) -> float:
    """P(Binomial(total, chance) <= most)."""
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * math.log(chance) + (total - k) * math.log1p(-chance)
        for k in range(min(most, total) + 1)
    ]
    return math.fsum(math.exp(value) for value in logs)
