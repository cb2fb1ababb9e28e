"""Is the candidate faster? Interleaved with the reference in one window, so that drift of the machine hits both alike.

Two runs one after the other see two machines: clocks, thermals and neighbours change between them. Here every block times
A B B A (Hoefler and Belli 2015, "Scientific benchmarking of parallel computing systems", SC15, rules 5-8, on intervals, medians
and environment; Georges et al. 2007, "Statistically rigorous Java performance evaluation", OOPSLA, on warm-up), a pair is the
two neighbours of one half, and the order turns round between halves, so a linear drift cancels.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import EdgepressError, MeasurementError
from edgepress.targets.nouns import Evidence
from edgepress.validators.intervals import Interval, expanded_z

Floats = NDArray[np.float64]
Clock = Callable[[], int]
#: One inference of the candidate and one of the reference.
Sides = tuple[Callable[[], object], Callable[[], object]]

#: Confidence a look before the last one must reach to stop (Haybittle 1971; Peto et al. 1976: interim looks at 0.001 leave
#: the error rate of the final look as it is, up to 0.001 per look).
INTERIM = 0.999
RESAMPLES = 600
#: How often both sides are opened anew in a window, and in one that goes on until a limit is decided; even, so that orders balance.
OPENINGS, MOST_OPENINGS = 4, 16


#: What is known of how far openings of one artifact lie apart before any is seen: the standard deviation of their log ratios, and how many
#: observations that is worth (benchmarks/verdicts.md; Smyth 2004, "Linear models and empirical Bayes methods", section 4, on the moderation
#: of a variance that few values tell).
_OPENINGS_APART, _WORTH = 0.01, 4


@dataclass(frozen=True)
class LatencyPlan:
    """How long to measure.

    Attributes:
        min_pairs: taken in any case, unless time runs out; 64 are what a p90 needs (`percentiles.fewest_samples`).
        max_pairs: the cap.
        seconds: no block starts after that much time, warm-up included.
        warmup_calls: most calls of each side that are thrown away.
    """

    min_pairs: int = 64
    max_pairs: int = 480
    seconds: float = 60.0
    warmup_calls: int = 100

    def __post_init__(self) -> None:
        if not (4 <= self.min_pairs <= self.max_pairs and self.seconds > 0 and self.warmup_calls >= 0):
            raise MeasurementError(f"a latency plan of {self}", "", "Take 4 <= min_pairs <= max_pairs and seconds > 0.")


@dataclass(frozen=True)
class LatencyComparison:
    """What an interleaved window showed.

    Attributes:
        ratio: candidate time over reference time; under 1 is faster.
        interval: two-sided, contains `ratio`.
        confidence: of the interval.
        pairs: number of pairs, also the number of times of each side.
        candidate_ms, reference_ms: every time taken after warm-up, in order, float64.
        warmup_calls: calls of each side thrown away.
        openings: how often both sides were opened anew.
        stopped: why it ended: `decided`, `pairs` (the cap), `seconds` (out of time), `planned` (there was no limit).
    """

    ratio: float
    interval: Interval
    confidence: float
    pairs: int
    candidate_ms: Floats
    reference_ms: Floats
    warmup_calls: int
    stopped: str
    openings: int = 1

    def evidence(self, reference: str) -> Evidence:
        """As the evidence of the gate `latency_ratio`; `reference` says what it was compared with."""
        how = f"{self.pairs} interleaved pairs (ABBA) against {reference}"
        if self.openings > 1:
            how += f", opened {self.openings} times in turns"
        kind = "bootstrap" if self.openings == 1 else "bootstrap or Student's"
        how += f", {self.confidence:.0%} interval ({kind}), ended: {self.stopped}"
        return Evidence("latency_ratio", self.ratio, "ratio", self.interval, self.pairs, how)

    def to_json(self, reference: str) -> dict[str, Any]:
        """The `latency_ratio` object of `report.json`."""
        return {"value": self.ratio, "interval": list(self.interval), "confidence": self.confidence, "reference": reference}


def compare_latency(
    candidate: Callable[[], object],
    reference: Callable[[], object],
    *,
    confidence: float = 0.95,
    plan: LatencyPlan | None = None,
    clock: Clock = time.perf_counter_ns,
) -> LatencyComparison:
    """Time two calls against each other, `plan.min_pairs` times or until time is up.

    Args:
        candidate, reference: one inference each, inputs in place (`Session.bind`).
        confidence: of the printed interval.
        plan: caps.
        clock: nanoseconds; a test hands in its own.

    Raises:
        MeasurementError: a call failed, or is too fast for the clock.
    """
    plan = plan or LatencyPlan()
    calls = (_timed("candidate", candidate, clock), _timed("reference", reference, clock))
    deadline = clock() + int(plan.seconds * 1e9)
    collecting = gc.isenabled()
    gc.disable()  # a collection would land on either side at random
    try:
        warm = _warm_up(calls, plan, clock, deadline)
        blocks, stopped = _collect(calls, plan, clock, deadline)
    finally:
        if collecting:
            gc.enable()
    ratio, interval = ratio_interval(blocks, confidence)
    first, second = blocks[:, :, 0].ravel() / 1e6, blocks[:, :, 1].ravel() / 1e6
    return LatencyComparison(ratio, interval, confidence, len(first), first, second, warm, stopped)


def compare_opened(
    opened: Callable[[bool], AbstractContextManager[Sides]],
    *,
    limit: float | None = None,
    confidence: float = 0.95,
    plan: LatencyPlan | None = None,
    clock: Clock = time.perf_counter_ns,
) -> LatencyComparison:
    """`compare_latency` over several openings of both sides, in turns which of them is opened first.

    Where a runtime puts weights and buffers depends on what was allocated before, and a process keeps that place: of two equal artifacts
    the one opened first was 2 % slower in every window (benchmarks/verdicts.md; Mytkowicz et al. 2009, "Producing wrong data without
    doing anything obviously wrong!", ASPLOS, section 4, on layout; Curtsinger and Berger 2013, "STABILIZER", ASPLOS, on randomizing it).

    Args:
        opened: opens the reference first where its argument is True, gives (candidate, reference) as for `compare_latency`, closes both.
        limit: the gate's largest ratio: pairs are added until it is decided or a cap is reached; it is looked at after every two openings.
        confidence, clock: as in `compare_latency`.
        plan: caps of all openings together; opening itself does not count.

    Raises:
        MeasurementError: as `compare_latency`.
    """
    plan = plan or LatencyPlan()
    openings = OPENINGS if limit is None else MOST_OPENINGS
    pairs = max(4, 2 * (plan.max_pairs // (2 * openings)))
    part = LatencyPlan(pairs, pairs, plan.seconds / openings, plan.warmup_calls)
    parts: list[LatencyComparison] = []
    stopped, timed = "planned" if limit is None else "pairs", 0
    for turn in range(openings):
        with opened(turn % 2 == 1) as (candidate, reference):
            start = clock()
            parts.append(compare_latency(candidate, reference, confidence=confidence, plan=part, clock=clock))
            timed += clock() - start
        if turn % 2 == 0:
            continue
        if limit is not None and sum(found.pairs for found in parts) >= plan.min_pairs:
            low, high = opened_interval(_blocks(parts), max(INTERIM, confidence))[1]
            if high < limit or low > limit:
                stopped = "decided"
                break
        if timed >= plan.seconds * 1e9:
            stopped = "seconds"
            break
    ratio, interval = opened_interval(_blocks(parts), confidence)
    times = [np.concatenate([getattr(found, side) for found in parts]) for side in ("candidate_ms", "reference_ms")]
    warm = sum(found.warmup_calls for found in parts)
    return LatencyComparison(ratio, interval, confidence, len(times[0]), times[0], times[1], warm, stopped, len(parts))


def _blocks(parts: Sequence[LatencyComparison]) -> list[Floats]:
    """Times of shape (blocks, 2 pairs, 2 sides) of each opening."""
    return [np.stack([found.candidate_ms, found.reference_ms], axis=1).reshape(-1, 2, 2) for found in parts]


def opened_interval(openings: Sequence[Floats], confidence: float) -> tuple[float, Interval]:
    """The ratio over all pairs of several openings, and an interval that holds for another set of openings too.

    Pairs of one opening share the places of weights and buffers, so an interval of all pairs as if they were apart is too narrow: an
    artifact against itself left it in up to 31 % of windows where 5 % were meant. Student's interval of the openings' own ratios, with a
    moderated variance, is taken where it is the wider one.

    Args:
        openings: of each one times as for `ratio_interval`; at least one.
        confidence: of the interval.
    """
    ratio, (low, high) = ratio_interval(np.concatenate(openings), confidence)
    if len(openings) == 1:
        return ratio, (low, high)
    from scipy.special import stdtrit

    single = np.array([_midmean(_log_ratios(blocks).reshape(1, -1))[0] for blocks in openings])
    freedom = _WORTH + len(single) - 1
    variance = (_WORTH * _OPENINGS_APART**2 + float(np.square(single - single.mean()).sum())) / freedom
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * float(np.sqrt(variance / len(single)))
    half = max(half, np.log(high / low) / 2)
    return ratio, (ratio * float(np.exp(-half)), ratio * float(np.exp(half)))


def ratio_interval(blocks: Floats, confidence: float, seed: int = 0) -> tuple[float, Interval]:
    """Interquartile mean of the pairs' log ratios, and its bootstrap interval (normal, with bootstrap standard error; Efron
    and Tibshirani 1993, "An introduction to the bootstrap", chapter 12).

    Why this estimate: simulated with slow drift, bursts of a neighbour (1.2 to 2 times slower) and 5 % outliers, 60 pairs
    gave a 95 % interval 2.7 % wide; the median of the pairs 3.0 %, block means 3.5 to 4.9 %, the ratio of the two medians
    12.9 %, all at 3 to 7 % misses. Outliers under a quarter on each side do not move it.

    Args:
        blocks: times of shape (blocks, 2 pairs, 2 = candidate and reference). Blocks are resampled whole, so that both orders
            keep their balance.
    """
    pairs = _log_ratios(blocks)
    estimate = float(_midmean(pairs.reshape(1, -1))[0])
    rows = np.random.default_rng(seed).integers(0, len(pairs), size=(RESAMPLES, len(pairs)))
    error = float(np.std(_midmean(pairs[rows].reshape(RESAMPLES, -1)), ddof=1))
    half = expanded_z(confidence, len(pairs)) * error
    return float(np.exp(estimate)), (float(np.exp(estimate - half)), float(np.exp(estimate + half)))


def _log_ratios(blocks: Floats) -> Floats:
    ratios: Floats = np.log(blocks[:, :, 0]) - np.log(blocks[:, :, 1])
    return ratios


def _midmean(rows: Floats) -> Floats:
    ordered = np.sort(rows, axis=1)
    cut = ordered.shape[1] // 4
    middle: Floats = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    return middle


Calls = tuple[Callable[[], int], Callable[[], int]]


def _timed(side: str, call: Callable[[], object], clock: Clock) -> Callable[[], int]:
    def timed() -> int:
        start = clock()
        try:
            call()
        except EdgepressError:
            raise
        except Exception as error:  # a runtime may raise anything; there is no latency then
            raise MeasurementError(f"the {side} failed while its latency was taken", f"{type(error).__name__}: {error}") from error
        taken = clock() - start
        if taken <= 0:
            raise MeasurementError(f"one call of the {side} took {taken} ns", "it is too fast for the clock", "Raise the batch size.")
        return taken

    return timed


def _block(calls: Calls) -> list[list[int]]:
    """A B B A: [[a1, b1], [a2, b2]] in ns."""
    a, b = calls
    first_a, first_b = a(), b()
    second_b, second_a = b(), a()
    return [[first_a, first_b], [second_a, second_b]]


def _warm_up(calls: Calls, plan: LatencyPlan, clock: Clock, deadline: int, window: int = 6, settled: float = 0.95) -> int:
    """Throw calls away until neither side gets faster any more: the median of the latest six calls is no longer 5 % under
    that of the six before. At most a quarter of the time goes into it.
    """
    quarter = clock() + (deadline - clock()) // 4
    times: list[list[int]] = []
    while len(times) < plan.warmup_calls and clock() < quarter:
        times += _block(calls)
        if len(times) >= 2 * window:
            recent = np.median(np.asarray(times[-window:]), axis=0)
            before = np.median(np.asarray(times[-2 * window : -window]), axis=0)
            if bool(np.all(recent >= settled * before)):
                break
    return len(times)


def _collect(calls: Calls, plan: LatencyPlan, clock: Clock, deadline: int) -> tuple[Floats, str]:
    blocks: list[list[list[int]]] = []
    while len(blocks) < -(-plan.min_pairs // 2):
        blocks.append(_block(calls))
        if len(blocks) >= 2 and clock() >= deadline:
            return np.asarray(blocks, dtype=np.float64), "seconds"
    return np.asarray(blocks, dtype=np.float64), "planned"
