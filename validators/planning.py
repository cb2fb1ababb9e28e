"""What the samples at hand can decide, and how many a decision takes.

A gate is decided where the whole interval lies on one side of its limit. `POWER` is the chance that it is, if the true value is what was
assumed; 0.8 is the custom of trials (Cohen 1988, "Statistical power analysis for the behavioral sciences", section 2.4).
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from edgepress.targets.errors import MeasurementError
from edgepress.validators.intervals import Interval, newcombe_paired, z_score

#: More samples than this is no advice.
MOST = 10_000_000
POWER = 0.8


def samples_to_decide(
    value: float, interval: Interval, samples: int, limit: float, confidence: float = 0.95, power: float = POWER
) -> int | None:
    """How many samples (or pairs) would decide, if the value stayed where it is; a normal approximation.

    An interval's half width shrinks as 1/sqrt(n). To be decided with probability `power`, value and limit must be
    (z + z_power) standard errors apart: n = samples * ((1 + z_power / z) * half / |limit - value|)^2, where `half` is the half
    width towards the limit (Julious 2004, "Sample sizes for clinical trials with normal data", Statistics in Medicine
    23:1921-1986, section 5 on non-inferiority).

    Returns:
        A number above `samples`, or None where no number up to ten million would decide.
    """
    half = interval[1] - value if value < limit else value - interval[0]
    gap = abs(limit - value)
    if gap == 0 or samples <= 0 or not np.isfinite(half):
        return None
    widths = (1 + NormalDist().inv_cdf(power) / z_score(confidence)) * half / gap
    if widths > MOST:  # its square may not even be a float
        return None
    needed = samples * widths**2
    return max(int(np.ceil(needed)), samples + 1) if needed <= MOST else None


def plan_samples(
    margin: float, disagreement: float, accuracy: float, drop: float = 0.0, confidence: float = 0.95, power: float = POWER
) -> int:
    """How many samples a 0/1 metric needs, before any were taken: the fewest whose `plan_margin` is under the margin.

    Args:
        margin, drop: gate limit and expected drop, as fractions (0.01 is 1 pp); drop < margin.
        disagreement: expected share of samples on which exactly one of the two models is right, >= |drop|.
        accuracy: of the reference.

    Raises:
        MeasurementError: no number up to ten million decides.
    """
    total = max(1.0, ((z_score(confidence) + _unlucky(power)) * _spread(disagreement, drop) / max(margin - drop, 1e-12)) ** 2)
    while total <= MOST:
        if plan_margin(total, disagreement, accuracy, drop, confidence, power) < margin:
            return int(np.ceil(total))
        total *= 1.02
    raise MeasurementError(f"no number of samples up to {MOST:,} decides a margin of {margin:.4f} at a drop of {drop:.4f}")


def plan_margin(
    total: float, disagreement: float, accuracy: float, drop: float = 0.0, confidence: float = 0.95, power: float = POWER
) -> float:
    """The smallest margin, as a fraction, that `total` samples of a 0/1 metric decide.

    Newcombe's upper bound at the drop that is exceeded with probability 1 - `power`. Approximate: expected cell counts stand for drawn
    ones, which is made up for by a fifth less risk of missing it and by the worst accuracy within two standard errors.

    Args:
        disagreement, accuracy, drop: as in `plan_samples`.
    """
    error = 2 * float(np.sqrt(accuracy * (1 - accuracy) / total))
    shifted = drop + _unlucky(power) * _spread(disagreement, drop) / float(np.sqrt(total))
    return max(_upper_bound(total, shifted, disagreement, accuracy + side * error, confidence) for side in (-1, 0, 1))


def _unlucky(power: float) -> float:
    return NormalDist().inv_cdf(1 - 0.8 * (1 - power))


def _spread(disagreement: float, drop: float) -> float:
    """Standard deviation of one sample's change of score."""
    return float(np.sqrt(max(disagreement - drop * drop, 0.0)))


def _upper_bound(total: float, drop: float, disagreement: float, accuracy: float, confidence: float) -> float:
    """Newcombe's upper bound at expected cell counts."""
    apart = max(disagreement, abs(drop))
    worse = (apart + drop) / 2
    both = min(max(accuracy - worse, 0.0), 1 - apart)
    return newcombe_paired(both * total, worse * total, (apart - worse) * total, (1 - apart - both) * total, confidence)[1]
