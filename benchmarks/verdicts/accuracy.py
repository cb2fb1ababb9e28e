"""Accuracy gates by simulation: what passes at the margin, and what the planned number of samples buys.

    python benchmarks/verdicts/accuracy.py [--draws N]

0/1 scores are drawn as tables of four cells from the true shares, other scores as differences of a skewed distribution. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from edgepress.validators.accuracy import compare
from edgepress.validators.intervals import newcombe_paired
from edgepress.validators.metrics import metric_of
from edgepress.validators.planning import plan_samples

Draws = NDArray[np.int64]
#: margin, share of samples that change sides, accuracy, samples
AT_MARGIN = [
    (0.01, 0.012, 0.9, 872),
    (0.01, 0.03, 0.9, 5000),
    (0.01, 0.08, 0.9, 5000),
    (0.005, 0.02, 0.88, 5000),
    (0.003, 0.02, 0.75, 10000),
]
PLANNED = [(0.01, 0.03, 0.9), (0.005, 0.02, 0.88), (0.02, 0.01, 0.97), (0.003, 0.02, 0.88)]


def tables(drop: float, disagreement: float, accuracy: float, samples: int, draws: int) -> Draws:
    """Counts of shape (draws, 4): both right, reference alone, candidate alone, neither."""
    only = (disagreement + drop) / 2
    shares = [accuracy - only, only, disagreement - only, 1 - accuracy - disagreement + only]
    return np.random.default_rng(0).multinomial(samples, shares, size=draws)


def verdicts(drawn: Draws, margin: float) -> tuple[float, float]:
    """Shares of draws that pass and that fail, at 95 %."""
    bounds = np.array([newcombe_paired(*map(float, row), 0.95) for row in drawn])
    return float(np.mean(bounds[:, 1] < margin)), float(np.mean(bounds[:, 0] > margin))


def scored(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """A metric whose outputs are its scores."""
    return outputs


def skewed(margin: float, samples: int, draws: int) -> tuple[float, float]:
    """The same for real-valued scores: nine of ten samples do not move, the others lose an exponential amount of mean ten margins."""
    draw, metric, passed, failed = np.random.default_rng(0), metric_of(scored), 0, 0
    before, labels = np.ones(samples), np.zeros(samples, dtype=np.int64)
    for _ in range(draws):
        lost = np.where(draw.random(samples) < 0.1, draw.exponential(10 * margin, samples), 0.0)
        low, high = compare(metric, before, before - lost, labels).interval
        passed += high < 100 * margin
        failed += low > 100 * margin
    return passed / draws, failed / draws


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    print("| at a true drop equal to the margin | passes | fails |\n|---|---|---|")
    for margin, disagreement, accuracy, samples in AT_MARGIN:
        passed, failed = verdicts(tables(margin, disagreement, accuracy, samples, draws), margin)
        what = f"{samples:,} samples, {100 * accuracy:g} % right, {100 * disagreement:g} % change sides, margin {100 * margin:g} pp"
        print(f"| {what} | {passed:.2%} | {failed:.2%} |", flush=True)
    for samples in (500, 2000):
        passed, failed = skewed(0.01, samples, draws)
        what = f"{samples:,} real-valued scores, one in ten loses an exponential amount, margin 1 pp"
        print(f"| {what} | {passed:.2%} | {failed:.2%} |", flush=True)
    print("\n| at no drop, with the planned samples | planned | passes |\n|---|---|---|")
    for margin, disagreement, accuracy in PLANNED:
        samples = plan_samples(margin, disagreement, accuracy)
        passed, _ = verdicts(tables(0.0, disagreement, accuracy, samples, draws), margin)
        what = f"{100 * accuracy:g} % right, {100 * disagreement:g} % change sides, margin {100 * margin:g} pp"
        print(f"| {what} | {samples:,} | {passed:.2%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
