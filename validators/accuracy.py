"""Did the metric drop? Paired on the same samples, as a question of non-inferiority.

A gate passes when the upper bound of the drop is under its margin, fails when the lower bound is over it, and is undecided
otherwise. The interval is two-sided at the stated confidence, so 0.95 means: at a true drop equal to the margin the gate
passes in at most about 2.5 % of draws and fails in at most about 2.5 %, that is, a wrong decision *of either kind* has at
most 5 %. The one-sided reading (a two-sided 90 % interval) was computed as well: with Newcombe's method it passes at the
margin in 2.7 to 5.6 % of draws, which breaks a stated 5 %; two-sided 95 % gives 0.2 to 2.9 % (`tests/validators/test_accuracy.py`
simulates it). Its price is about 27 % more samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Evidence
from edgepress.validators.intervals import (
    Floats,
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
    newcombe_paired,
    unseen_share,
)
from edgepress.validators.metrics import POINTS, BoundMetric, Metric, Outputs

#: Under this many samples a bootstrap says nothing: the interval is then everything that is possible.
FEWEST = 10


@dataclass(frozen=True)
class Comparison:
    """A candidate against the fp32 reference on the same samples.

    Attributes:
        metric: its name.
        value, reference: the metric of the candidate and of the reference (fractions for `pp` metrics).
        drop: > 0 means worse, whichever direction is better; in `unit`.
        interval: two-sided, contains `drop`, in `unit`.
        unit: `pp`, or the metric's own.
        samples, confidence, method: what it rests on.
    """

    metric: str
    value: float
    reference: float
    drop: float
    interval: Interval
    unit: str
    samples: int
    confidence: float
    method: str

    def evidence(self, executed_by: str = "") -> Evidence:
        """As the evidence of the gate `accuracy_drop`."""
        how = f"{self.method}, two-sided {self.confidence:.0%} interval" + (f", executed by {executed_by}" if executed_by else "")
        return Evidence("accuracy_drop", self.drop, self.unit, self.interval, self.samples, how)


def compare(
    metric: Metric | BoundMetric, reference: Outputs, candidate: Outputs, labels: NDArray[Any], confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two models' outputs on the same samples.

    0/1 scores get Newcombe's paired interval (1998, method 10), other per-sample scores a BCa bootstrap of the mean
    difference, metrics of the whole set a paired bootstrap over resampled indices.

    Args:
        metric: bound to the reference, or not yet.
        reference, candidate: outputs, dimension 0 is the batch, in the order of `labels`.
        labels: the batch in dimension 0.
        confidence: two-sided, in (0, 1).
        seed: of the bootstrap.

    Raises:
        ProjectError: labels that cannot be used.
        MeasurementError: NaN anywhere, numbers of samples that differ.
    """
    bound = metric if isinstance(metric, BoundMetric) else metric.bind(reference, labels)
    before, after = bound.scores(reference), bound.scores(candidate)
    if before is None or after is None:
        return _compare_sets(bound, reference, candidate, confidence, seed)
    return compare_scores(bound, before, after, confidence, seed)


def compare_scores(bound: BoundMetric, before: Floats, after: Floats, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare per-sample scores: float64 of shape (n,) each, of the reference and of the candidate."""
    sign = 1.0 if bound.higher_is_better else -1.0
    if zero_one(before) and zero_one(after):
        interval, method = _newcombe_scores(before, after, sign, confidence), "Newcombe 1998 method 10"
    else:
        interval = _bootstrap_scores(before, after, sign, confidence, seed, bound.unit == POINTS)
        method = "paired BCa bootstrap"
    return _comparison(bound, float(before.mean()), float(after.mean()), interval, confidence, method)


def _comparison(bound: BoundMetric, reference: float, value: float, interval: Interval, confidence: float, method: str) -> Comparison:
    drop = (reference - value if bound.higher_is_better else value - reference) * bound.scale
    low, high = interval[0] * bound.scale, interval[1] * bound.scale
    if not all(np.isfinite(number) for number in (drop, low, high)):
        raise MeasurementError(f"the drop of metric {bound.name!r} is {drop} with the interval [{low}, {high}]", "it must be finite")
    inside = (min(low, drop), max(high, drop))  # rounding in the last bit only: every method contains its estimate
    return Comparison(bound.name, value, reference, drop, inside, bound.unit, bound.samples, confidence, method)


def compare_zero_one(before: Floats, after: Floats, confidence: float = 0.95) -> tuple[float, Interval]:
    """Share of samples lost from `before` to `after`, and its paired interval (`newcombe_paired`), as fractions; > 0 is worse.

    Args:
        before, after: scores of 0 and 1 on the same samples, 1 is better, float64 of shape (n,) each.
        confidence: two-sided, in (0, 1).
    """
    low, high = _newcombe_scores(before, after, 1.0, confidence)
    drop = float(before.mean() - after.mean())
    return drop, (min(low, drop), max(high, drop))


def zero_one(scores: Floats) -> bool:
    """Is every score 0 or 1?"""
    return bool(np.all((scores == 0) | (scores == 1)))


def _newcombe_scores(before: Floats, after: Floats, sign: float, confidence: float) -> Interval:
    total = len(before)
    first, second = int(before.sum()), int(after.sum())
    both = int((before * after).sum())
    low, high = newcombe_paired(both, first - both, second - both, total - first - second + both, confidence)
    return (low, high) if sign > 0 else (-high, -low)


def _bootstrap_scores(before: Floats, after: Floats, sign: float, confidence: float, seed: int, fraction: bool) -> Interval:
    worse = sign * (before - after)
    drop, total = float(worse.mean()), len(worse)
    reach = _reach(before, after, fraction)
    if total < FEWEST:
        return drop - 2 * reach, drop + 2 * reach
    interval = bootstrap_mean(worse, confidence, seed)
    if np.count_nonzero(worse) * 2 < total:
        interval = _with_unseen(interval, drop, reach, total, confidence)
    return interval


def _reach(before: Floats, after: Floats, fraction: bool) -> float:
    """How far one sample's score can move."""
    both = np.concatenate([before, after])
    seen = max(float(np.ptp(both)), float(np.abs(both).max()))
    return max(seen, 1.0) if fraction else seen


def _with_unseen(interval: Interval, drop: float, reach: float, total: int, confidence: float) -> Interval:
    """Where most samples did not move at all, resampling them cannot show the rare sample that does: leave room for the
    share of such samples that `total` draws can miss. Twenty equal samples are no proof of a drop under 1 pp.
    """
    room = reach * unseen_share(total, confidence)
    return min(interval[0], drop - room), max(interval[1], drop + room)


def _compare_sets(bound: BoundMetric, reference: Outputs, candidate: Outputs, confidence: float, seed: int) -> Comparison:
    before, after = bound.sampler(reference), bound.sampler(candidate)
    everything, sign, total = np.arange(bound.samples), 1.0 if bound.higher_is_better else -1.0, bound.samples
    first, second = before(everything), after(everything)
    for who, number in (("reference", first), ("candidate", second)):
        if not np.isfinite(number):
            raise MeasurementError(f"metric {bound.name!r} of the {who} is {number} on {total} samples", "", "Check outputs and labels.")
    drop = sign * (first - second)
    reach = 1.0 if bound.unit == POINTS else max(abs(first), abs(second))
    if total < FEWEST:
        return _comparison(bound, first, second, (drop - 2 * reach, drop + 2 * reach), confidence, "paired bootstrap")
    interval, drawn = bootstrap_statistic(lambda index: sign * (before(index) - after(index)), total, confidence, seed)
    if len(drawn) < 500:
        raise MeasurementError(
            f"metric {bound.name!r} is not defined on {1000 - len(drawn)} of 1000 resamples of {total} samples",
            "too few samples of a class",
            "Collect more validation samples.",
        )
    if np.count_nonzero(drawn) * 2 < len(drawn):
        interval = _with_unseen(interval, drop, reach, total, confidence)
    return _comparison(bound, first, second, interval, confidence, "paired bootstrap over samples")
