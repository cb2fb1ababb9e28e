import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.targets.errors import MeasurementError, ProjectError
from edgepress.validators.accuracy import compare
from edgepress.validators.intervals import bootstrap_mean, expanded_z, newcombe_paired, unseen_share, wilson
from edgepress.validators.metrics import BoundMetric, metric_of
from edgepress.validators.planning import plan_margin, plan_samples, samples_to_decide


def scored(outputs, labels):
    """A metric whose outputs are its scores."""
    return outputs


def lower_is_better(outputs, labels):
    return outputs


lower_is_better.higher_is_better = False
lower_is_better.unit = "loss"

SCORES = metric_of(scored)
LOSS = metric_of(lower_is_better)


def against(before, after, metric=SCORES, confidence=0.95):
    before, after = np.asarray(before, float), np.asarray(after, float)
    return compare(metric, before, after, np.zeros(len(before)), confidence)


def cells(both, reference_only, candidate_only, neither):
    before = [1.0] * (both + reference_only) + [0.0] * (candidate_only + neither)
    after = [1.0] * both + [0.0] * reference_only + [1.0] * candidate_only + [0.0] * neither
    return before, after


# --- Newcombe ---------------------------------------------------------------------------------------------------------


def test_newcombe_gives_the_published_interval():
    """Newcombe 1998, table II: 36, 12, 2, 0 of 50; method 10 at 95 %: 0.0569 to 0.3404."""
    assert newcombe_paired(36, 12, 2, 0, 0.95) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_wilson_gives_the_textbook_interval():
    """Newcombe 1998 (single proportion), example 81 of 263: 0.2553 to 0.3662."""
    assert wilson(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_newcombe_without_disagreement_is_not_a_point():
    low, high = newcombe_paired(95, 0, 0, 5, 0.95)
    assert low < -0.01 and high > 0.01 and low == pytest.approx(-high)


def test_newcombe_coverage_by_enumeration():
    """Exact: every possible table of 60 pairs, weighted with its probability."""
    chance = np.array([0.80, 0.08, 0.04, 0.08])
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 61)))])
    covered = total = 0.0
    for b in range(26):
        for c in range(20):
            for d in range(26):
                a = 60 - b - c - d
                if a < 0:
                    continue
                counts = np.array([a, b, c, d])
                weight = np.exp(logs[60] - logs[counts].sum() + (counts * np.log(chance)).sum())
                low, high = newcombe_paired(a, b, c, d, 0.95)
                total += weight
                covered += weight * (low <= 0.04 <= high)
    assert total > 0.999 and 0.94 <= covered / total <= 0.985


def passes_at(drop, disagreement, accuracy, samples, draws=2000, margin=0.01, seed=0):
    only = (disagreement + drop) / 2
    chance = [accuracy - only, only, disagreement - only, 1 - accuracy - disagreement + only]
    drawn = np.random.default_rng(seed).multinomial(samples, chance, size=draws)
    return np.mean([newcombe_paired(*map(float, row), 0.95)[1] < margin for row in drawn])


@pytest.mark.parametrize("samples", [500, 872, 5000])
@pytest.mark.parametrize("disagreement", [0.012, 0.03, 0.08])
def test_at_the_margin_a_gate_passes_in_at_most_one_of_twenty_draws(samples, disagreement):
    assert passes_at(0.01, disagreement, 0.9, samples) <= 0.05


@pytest.mark.parametrize(
    ("margin", "disagreement", "accuracy"), [(0.01, 0.03, 0.9), (0.005, 0.02, 0.88), (0.02, 0.01, 0.97), (0.01, 0.0, 0.95)]
)
def test_the_planned_size_passes_without_a_drop_in_four_of_five_draws(margin, disagreement, accuracy):
    planned = plan_samples(margin, disagreement, accuracy)
    assert passes_at(0.0, disagreement, accuracy, planned, margin=margin) >= 0.8
    assert passes_at(0.0, disagreement, accuracy, planned // 2, margin=margin) < 0.8  # and it is not simply enormous


@given(st.integers(200, 50_000), st.floats(0.005, 0.1), st.floats(0.6, 0.99))
@settings(max_examples=40, deadline=None)
def test_the_planned_margin_is_the_one_its_samples_decide(samples, disagreement, accuracy):
    margin = plan_margin(samples, disagreement, accuracy)
    assert plan_margin(4 * samples, disagreement, accuracy) < margin
    assert plan_samples(margin * 1.001, disagreement, accuracy) <= 1.05 * samples
    assert plan_samples(margin * 0.9, disagreement, accuracy) > samples


def test_a_plan_without_a_way_out_says_so():
    with pytest.raises(MeasurementError, match="no number of samples"):
        plan_samples(0.01, 0.05, 0.9, drop=0.01)


# --- every interval contains its estimate -----------------------------------------------------------------------------

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
REALS = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=40)


@given(BITS)
@settings(max_examples=80, deadline=None)
def test_the_drop_lies_in_its_interval_for_right_and_wrong(pairs):
    found = against(*zip(*pairs, strict=True))
    low, high = found.interval
    assert -100 <= low <= found.drop <= high <= 100 and high - low > 0
    swapped = against(*reversed(list(zip(*pairs, strict=True))))
    assert swapped.drop == pytest.approx(-found.drop) and swapped.interval == pytest.approx((-high, -low))


@given(REALS)
@settings(max_examples=25, deadline=None)
def test_the_drop_lies_in_its_interval_for_real_scores(pairs):
    found = against(*zip(*pairs, strict=True), LOSS)
    assert found.interval[0] <= found.drop <= found.interval[1]
    assert all(np.isfinite(found.interval))


@pytest.mark.parametrize("table", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (50, 0, 0, 0), (0, 0, 0, 50), (0, 50, 0, 0), (0, 0, 50, 0)])
def test_degenerate_tables_have_an_interval_around_their_drop(table):
    found = against(*cells(*table))
    low, high = found.interval
    assert low <= found.drop <= high and high - low > 5  # fifty samples are no proof of a drop under 1 pp
    assert high > 1.0 or found.drop == -100


# --- direction, unit, method ------------------------------------------------------------------------------------------


def test_a_drop_is_worse_in_both_directions():
    worse = against([0.0, 1.0] * 20, [0.5, 2.0] * 20, LOSS)
    assert worse.drop == pytest.approx(0.75) and worse.unit == "loss" and worse.value > worse.reference
    assert against([1.0] * 20, [0.0] * 20).drop == 100.0


def test_zero_one_losses_turn_newcombe_round():
    before, after = cells(40, 6, 2, 12)
    better, worse = against(before, after), against(before, after, LOSS)
    assert worse.drop == pytest.approx(-better.drop / 100)
    assert worse.interval == pytest.approx((-better.interval[1] / 100, -better.interval[0] / 100))


def test_methods_are_told_apart():
    assert "Newcombe" in against(*cells(9, 1, 1, 1)).method
    assert "BCa" in against([0.5] * 12, [0.4] * 12).method


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(3)
    before, after = rng.random(100), rng.random(100)
    assert against(before, after).interval == against(before, after).interval


# --- bootstrap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [12, 40])
def test_bootstrap_covers_means_of_skewed_scores(samples):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_mean(rng.gamma(2.0, 1.0, samples) - 2.0, 0.95, resamples=500)
        hits += low <= 0 <= high
    assert hits / 300 >= 0.91


def test_few_real_scores_prove_nothing():
    found = against([0.5] * 5, [0.5] * 5)
    assert found.interval[0] <= -50 and found.interval[1] >= 50


def test_scores_that_mostly_do_not_move_leave_room_for_the_unseen():
    found = against([0.5] * 40, [0.5] * 40)
    assert found.interval[1] == pytest.approx(100 * unseen_share(40, 0.95)) and found.interval[1] > 8


def test_resampling_keeps_memory_bounded():
    import tracemalloc

    values = np.random.default_rng(0).normal(size=200_000)
    tracemalloc.start()
    bootstrap_mean(values, 0.95, resamples=60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # all 60 rows at once would be 96 MB of indices and as much of values; 2,000 rows are 3.2 GB


def test_metrics_of_the_whole_set_are_resampled_in_pairs():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    reference = rng.normal(size=200) + 2.0 * labels
    candidate = reference + rng.normal(size=200) * 0.8
    found = compare(metric_of("auroc"), reference, candidate, labels)
    assert found.unit == "pp" and found.interval[0] <= found.drop <= found.interval[1]
    assert 0 < found.interval[1] - found.interval[0] < 15 and found.drop == pytest.approx(100 * (found.reference - found.value))


def test_equal_outputs_of_a_set_metric_are_no_proof_from_twenty_samples():
    labels = np.arange(20) % 2
    outputs = np.eye(2, dtype=np.float32)[labels] * 4 - 2
    found = compare(metric_of("f1_score"), outputs, outputs, labels)
    assert found.drop == 0 and found.interval[1] > 10


def test_a_set_metric_that_is_nan_is_an_error():
    def undefined(outputs):
        return lambda index: float("nan")

    metric = BoundMetric("map", "pp", True, 30, None, undefined)
    with pytest.raises(MeasurementError, match="'map' of the reference is nan"):
        compare(metric, np.arange(30.0), np.arange(30.0), np.arange(30.0))


def test_a_set_metric_without_a_value_on_most_resamples_is_an_error():
    def only_on_all(outputs):
        return lambda index: 0.5 if len(set(index.tolist())) == 30 else float("nan")

    metric = BoundMetric("map", "pp", True, 30, None, only_on_all)
    with pytest.raises(MeasurementError, match="1000 of 1000 resamples"):
        compare(metric, np.arange(30.0), np.arange(30.0), np.arange(30.0))


def test_nan_on_either_side_is_an_error_and_zero_samples_too():
    good, bad = np.full((12, 3), 0.1), np.full((12, 3), np.nan)
    labels = np.zeros(12, np.int64)
    for before, after in ((good, bad), (bad, good)):
        with pytest.raises(MeasurementError, match="NaN"):
            compare(metric_of("accuracy"), before, after, labels)
    with pytest.raises(ProjectError, match="no samples"):
        compare(metric_of("accuracy"), good[:0], good[:0], labels[:0])
    with pytest.raises(MeasurementError, match="11"):
        compare(metric_of("accuracy"), good, good[:11], labels)


# --- how many samples -------------------------------------------------------------------------------------------------


def test_four_times_the_samples_halve_the_interval():
    assert samples_to_decide(0.0, (-2.0, 2.0), 1000, 1.0, power=0.5) == 4000
    assert 8000 < samples_to_decide(0.0, (-2.0, 2.0), 1000, 1.0) < 8400


def test_the_half_width_towards_the_limit_counts():
    assert samples_to_decide(2.0, (0.5, 9.0), 100, 1.0, power=0.5) == 225


def test_no_number_decides_at_the_limit():
    assert samples_to_decide(1.0, (0.0, 2.0), 100, 1.0) is None
    assert samples_to_decide(0.999999, (0.0, 2.0), 100, 1.0) is None


@given(st.floats(-5, 5), st.floats(0.01, 10), st.integers(1, 100_000))
@settings(max_examples=80)
def test_the_advice_is_never_fewer_than_there_are(value, half, samples):
    needed = samples_to_decide(value, (value - half, value + half), samples, 1.0)
    assert needed is None or needed > samples


def test_small_samples_widen_the_normal_quantile():
    """Student's 0.975 quantiles from any table: 2.262 at 9 and 2.045 at 29 degrees of freedom, times sqrt(n / (n - 1))."""
    assert expanded_z(0.95, 10) == pytest.approx(2.262 * (10 / 9) ** 0.5, abs=5e-3)
    assert expanded_z(0.95, 30) == pytest.approx(2.045 * (30 / 29) ** 0.5, abs=5e-3)
    assert expanded_z(0.95, 10**7) == pytest.approx(1.959964, abs=1e-5)
