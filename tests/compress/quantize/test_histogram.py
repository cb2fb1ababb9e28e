import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compress.quantize.histogram import BINS, Histogram

magnitudes = st.floats(2.0**-60, 2.0**60, width=32)
finite = st.one_of(st.just(0.0), magnitudes, magnitudes.map(lambda value: -value))
lists = st.lists(finite, min_size=1, max_size=60)


def filled(*batches: list[float]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(torch.tensor(batch, dtype=torch.float32))
    return histogram


@given(lists)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: list[float]) -> None:
    histogram = filled(values)
    places = np.floor(np.array(values, dtype=np.float32).astype(np.float64) / histogram.width).astype(int) + BINS
    assert np.array_equal(histogram.counts, np.bincount(places, minlength=2 * BINS))
    assert histogram.total == len(values) == histogram.counts.sum()


@given(lists, st.integers(0, 60), st.randoms(use_true_random=False))
def test_counts_depend_neither_on_order_nor_on_batching(values: list[float], cut: int, random: object) -> None:
    whole = filled(values)
    mixed = list(values)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    parts = filled(*[part for part in (mixed[:cut], mixed[cut:]) if part])
    assert parts.exponent == whole.exponent
    assert np.array_equal(parts.counts, whole.counts)
    assert (parts.minimum, parts.maximum, parts.zeros, parts.total) == (whole.minimum, whole.maximum, whole.zeros, whole.total)


@given(lists)
def test_the_range_contains_every_value(values: list[float]) -> None:
    histogram = filled(values)
    assert histogram.exponent is not None
    assert max(abs(v) for v in np.float32(values)) < 2.0**histogram.exponent
    assert histogram.largest == max(abs(float(v)) for v in np.float32(values))


@settings(max_examples=30)
@given(st.lists(st.floats(2.0**-10, 1.0, width=32), min_size=1, max_size=30), st.integers(1, 100))
def test_doubling_the_range_merges_neighbours_without_losing_a_count(values: list[float], doublings: int) -> None:
    histogram = filled(values)
    before = histogram.counts.copy()
    assert histogram.exponent is not None
    histogram.cover(2.0 ** (histogram.exponent + doublings - 1))
    assert histogram.counts.sum() == before.sum()
    if doublings == 1:
        assert np.array_equal(histogram.counts[BINS // 2 : BINS // 2 + BINS], before.reshape(-1, 2).sum(1))


def test_zeros_and_constants_are_counted_too() -> None:
    histogram = filled([0.0, 0.0, -0.0])
    assert (histogram.largest, histogram.zeros, histogram.total, histogram.counts[BINS]) == (0.0, 3, 3, 3)
    histogram.update(torch.full((4,), 3.0))
    assert (histogram.largest, histogram.zeros, histogram.total) == (3.0, 3, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_kept_apart(value: float) -> None:
    histogram = filled([1.0, value, 2.0], [value])
    assert (histogram.infinities, histogram.total, histogram.minimum, histogram.maximum) == (2, 2, 1.0, 2.0)
    assert histogram.largest == float("inf")


def test_half_precision_and_empty_tensors_are_read() -> None:
    histogram = Histogram()
    histogram.update(torch.zeros(0))
    assert histogram.largest == 0.0
    histogram.update(torch.tensor([1.5, -2.5], dtype=torch.bfloat16))
    assert (histogram.minimum, histogram.maximum) == (-2.5, 1.5)
