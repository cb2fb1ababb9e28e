import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest

from edgepress.targets.errors import ExecutionError, MeasurementError
from edgepress.validators.gates import Gate, judge
from edgepress.validators.latency import OPENINGS, LatencyPlan, compare_latency, compare_opened, opened_interval, ratio_interval
from edgepress.validators.percentiles import fewest_samples, latency_summary, percentile_interval, percentile_ms


class Machine:
    """A simulated clock and the calls that advance it: slow drift, a neighbour's bursts, noise and outliers."""

    def __init__(self, seed, noise=0.03, drift=0.25, bursts=True, outliers=0.05):
        self.rng = np.random.default_rng(seed)
        self.now, self.calls = 0, 0
        self.noise, self.drift, self.bursts, self.outliers = noise, drift, bursts, outliers
        self.phase, self.period = self.rng.random(), self.rng.uniform(200, 2000)
        self.left, self.factor = 0, 1.0

    def clock(self):
        return self.now

    def takes(self, ms, warmup=0.0):
        """A call of `ms` milliseconds; its first run is three times as slow, which fades over `warmup` runs."""
        runs = 0

        def call():
            nonlocal runs
            runs += 1
            self.now += int(ms * 1e6 * self.slowness() * (1 + 2 * np.exp(-(runs - 1) / warmup) if warmup else 1.0))

        return call

    def slowness(self):
        self.calls += 1
        self.left -= 1
        if self.bursts and self.left <= 0:
            busy = self.factor == 1.0
            self.left = int(self.rng.exponential(40 if busy else 80)) + 1
            self.factor = self.rng.uniform(1.2, 2.0) if busy else 1.0
        slow = 1 + self.drift * np.sin(2 * np.pi * (self.calls / self.period + self.phase))
        outlier = self.rng.uniform(1.3, 3.0) if self.rng.random() < self.outliers else 1.0
        return slow * self.factor * outlier * np.exp(self.rng.normal(0, self.noise))


def measure(seed, ratio, limit, plan=None, **machine):
    simulated = Machine(seed, **machine)
    sides = (simulated.takes(1.0 * ratio), simulated.takes(1.0))
    return compare_opened(lambda reference_first: nullcontext(sides), limit=limit, plan=plan, clock=simulated.clock)


def verdicts(ratio, limit, runs):
    gate = Gate("latency_ratio", limit, "ratio")
    return [judge([gate], [measure(seed, ratio, limit).evidence("fp32")])[0].verdict for seed in range(runs)]


@contextmanager
def opened_by(slow_first: float, calls: list[bool], times: tuple[int, int], clock: Any, reference_first: bool) -> Iterator[Any]:
    """Two calls on a fake clock; whichever is opened first is slower by a share."""
    calls.append(reference_first)
    first = 1 if reference_first else 0
    durations = [round(base * (1 + slow_first * (place == first))) for place, base in enumerate(times)]
    yield tuple(partial(clock.advance, duration) for duration in durations)


class FakeClock:
    """Nanoseconds that only calls move."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def advance(self, duration: int) -> None:
        self.now += duration


def test_the_order_of_opening_does_not_decide() -> None:
    clock, calls = FakeClock(), []
    opened = partial(opened_by, 0.03, calls, (1_000_000, 1_000_000), clock)
    found = compare_opened(opened, plan=LatencyPlan(min_pairs=64, max_pairs=64), clock=clock)
    assert found.ratio == pytest.approx(1.0, abs=1e-3) and found.interval[0] <= 1 <= found.interval[1]
    assert calls == [False, True, False, True] and found.openings == 4 and found.pairs >= 64
    assert "opened 4 times in turns" in found.evidence("it").how
    alone, _ = FakeClock(), calls.clear()
    with opened_by(0.03, calls, (1_000_000, 1_000_000), alone, False) as sides:
        assert compare_latency(*sides, plan=LatencyPlan(min_pairs=64, max_pairs=64), clock=alone).ratio == pytest.approx(1.03, abs=1e-3)


@pytest.mark.parametrize(("candidate", "stopped"), [(1_100_000, "decided"), (1_020_000, "pairs")])
def test_openings_go_on_until_the_limit_is_decided(candidate: int, stopped: str) -> None:
    clock, calls = FakeClock(), []
    opened = partial(opened_by, 0.03, calls, (candidate, 1_000_000), clock)
    found = compare_opened(opened, limit=1.02, plan=LatencyPlan(min_pairs=8, max_pairs=160), clock=clock)
    assert found.stopped == stopped and len(calls) % 2 == 0 and (len(calls) < 16) == (stopped == "decided")


def test_the_same_artifact_twice_is_no_false_alarm_on_a_busy_machine():
    found = verdicts(1.0, 1.05, 120)
    assert found.count("fail") <= 2 and found.count("undecided") <= 12


def test_a_tenth_slower_is_caught_on_a_busy_machine():
    assert verdicts(1.10, 1.05, 60).count("fail") >= 59


def test_a_twentieth_slower_is_caught_on_a_busy_machine():
    assert verdicts(1.05, 1.0, 60).count("fail") >= 54


def test_at_the_limit_few_runs_pass():
    assert verdicts(0.8, 0.8, 60).count("pass") <= 5


def test_one_run_after_the_other_would_raise_false_alarms():
    """Why the calls are interleaved: sequential medians on the same simulated machine miss by more than 5 % in most runs."""
    misses = 0
    for seed in range(40):
        machine = Machine(seed, drift=0.25, bursts=True)
        first, second = ([machine.slowness() for _ in range(120)] for _ in range(2))
        misses += abs(np.median(first) / np.median(second) - 1) > 0.05
    interleaved = sum(abs(measure(seed, 1.0, None).ratio - 1) > 0.05 for seed in range(40))
    assert misses > 20 and interleaved == 0


def test_a_linear_drift_cancels():
    machine = Machine(0, noise=0.0, drift=0.0, bursts=False, outliers=0.0)
    machine.slowness = lambda: _creep(machine)
    found = compare_latency(machine.takes(0.5), machine.takes(1.0), clock=machine.clock)
    assert found.ratio == pytest.approx(0.5, rel=1e-3)


def _creep(machine):
    machine.calls += 1
    return 1 + 0.002 * machine.calls


def test_clear_cases_stop_early_and_close_ones_go_to_the_cap():
    clear = measure(0, 0.5, 0.8)
    assert clear.stopped == "decided" and 64 <= clear.pairs < 200
    close = measure(0, 0.8, 0.8, LatencyPlan(min_pairs=64, max_pairs=200))
    assert close.stopped == "pairs" and 180 < close.pairs <= 200
    assert measure(0, 0.5, None).stopped == "planned"


def test_time_runs_out():
    found = measure(0, 1.0, 1.0, LatencyPlan(seconds=0.05))
    assert found.stopped == "seconds" and 4 <= found.pairs < 64
    assert found.interval[0] <= found.ratio <= found.interval[1]


def test_the_times_are_the_candidates_own():
    found = measure(3, 0.5, 0.8, noise=0.0, drift=0.0, bursts=False, outliers=0.0)
    assert found.candidate_ms == pytest.approx(np.full(found.pairs, 0.5), rel=1e-3)
    assert found.reference_ms == pytest.approx(np.full(found.pairs, 1.0), rel=1e-3)
    assert found.ratio == pytest.approx(0.5, rel=1e-3) and found.interval[0] <= found.ratio <= found.interval[1]


def test_warm_up_is_thrown_away():
    machine = Machine(0, bursts=False, drift=0.0, outliers=0.0)
    found = compare_latency(machine.takes(1.0, warmup=8.0), machine.takes(1.0), clock=machine.clock)
    assert 20 <= found.warmup_calls <= 80
    assert found.candidate_ms.max() < 1.3


def test_outliers_do_not_move_the_ratio():
    assert measure(1, 0.7, None, outliers=0.15).ratio == pytest.approx(0.7, rel=0.03)


def test_whole_blocks_are_resampled_so_that_order_effects_cancel():
    """The second call of a pair is 20 % faster, whoever it is."""
    blocks = np.tile(np.array([[[1.0, 0.8], [0.8, 1.0]]]), (32, 1, 1))
    ratio, interval = ratio_interval(blocks, 0.95)
    assert ratio == pytest.approx(1.0) and interval == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("apart", "most"), [(0.005, 0.05), (0.01, 0.06), (0.02, 0.15)])
def test_the_interval_holds_for_other_openings_too(apart: float, most: float) -> None:
    """Each opening has a ratio of its own, since weights and buffers lie elsewhere: what all its pairs share tells nothing of the next."""
    draw, misses, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        shifts = np.exp(draw.normal(0, apart, OPENINGS))
        blocks = [np.exp(draw.normal(0, 0.01, (40, 2, 2))) * [shift, 1.0] for shift in shifts]
        low, high = opened_interval(blocks, 0.95)[1]
        misses += not low <= 1.0 <= high
        low, high = ratio_interval(np.concatenate(blocks), 0.95)[1]
        naive += not low <= 1.0 <= high
    assert misses <= most * 300 < naive / 2


def test_a_call_that_fails_is_an_error_that_names_its_side():
    machine = Machine(0)

    def broken():
        raise ValueError("no kernel")

    with pytest.raises(MeasurementError, match=r"candidate failed.*no kernel"):
        compare_latency(broken, machine.takes(1.0), clock=machine.clock)

    def refused():
        raise ExecutionError("onnxruntime failed")

    with pytest.raises(ExecutionError):
        compare_latency(machine.takes(1.0), refused, clock=machine.clock)
    assert gc.isenabled()


def test_a_call_too_fast_for_the_clock_is_an_error():
    with pytest.raises(MeasurementError, match="too fast"):
        compare_latency(lambda: None, lambda: None, clock=lambda: 0)


@pytest.mark.parametrize("settings", [{"min_pairs": 2}, {"min_pairs": 100, "max_pairs": 50}, {"seconds": 0.0}])
def test_a_plan_that_measures_nothing_is_refused(settings):
    with pytest.raises(MeasurementError, match="latency plan"):
        LatencyPlan(**settings)


def test_real_calls_are_timed_with_the_real_clock():
    found = compare_latency(lambda: sum(range(2000)), lambda: sum(range(2000)), plan=LatencyPlan(min_pairs=4, max_pairs=8))
    assert found.pairs == 4 and np.all(found.candidate_ms > 0)


# --- percentiles ------------------------------------------------------------------------------------------------------


def test_the_counts_of_mlperf_early_stopping():
    assert (fewest_samples(0.9), fewest_samples(0.99)) == (64, 662)


def test_percentiles_are_printed_where_the_count_supports_them():
    times = np.linspace(1.0, 2.0, 63)
    assert percentile_ms(times, 0.5) == 1.5 and percentile_ms(times, 0.9) is None
    assert percentile_ms(np.linspace(1, 2, 64), 0.9) == pytest.approx(1.9)
    assert percentile_ms(np.linspace(1, 2, 661), 0.99) is None
    assert percentile_ms(np.linspace(1, 2, 662), 0.99) == pytest.approx(1.99)
    assert latency_summary(times, 1, 4) == {"p50": 1.5, "p90": None, "p99": None, "samples": 63, "threads": 1, "batch": 4}


@pytest.mark.parametrize("times", [[], [1.0, np.nan], [1.0, np.inf], [1.0, 0.0]])
def test_latencies_that_are_none_are_an_error(times):
    with pytest.raises(MeasurementError):
        percentile_ms(times, 0.5)


def test_percentile_intervals_cover():
    rng = np.random.default_rng(0)
    truth = np.quantile(np.exp(rng.normal(size=1_000_000)), 0.9)
    hits = 0
    for _ in range(400):
        low, high = percentile_interval(np.exp(rng.normal(size=200)), 0.9)
        hits += low <= truth <= high
    assert hits / 400 >= 0.93
