import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compress.quantize.histogram import Histogram
from edgepress.compress.quantize.observers import OBSERVERS, choose_range
from edgepress.compress.quantize.sharing import qparams
from edgepress.targets.errors import QuantizationError
from edgepress.targets.rules import rules_for

INT8, UINT8, SYMMETRIC = rules_for("litert"), rules_for("onnxruntime"), rules_for("tensorrt")


def histogram_of(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def error(values: torch.Tensor, interval: tuple[float, float]) -> float:
    """Mean squared error of rounding to int8 over a range."""
    found = qparams(interval, INT8)
    integers = torch.clamp(torch.round(values / found.scale) + found.zero_point, -128, 127)
    return float(((integers - found.zero_point) * found.scale - values).square().mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.sampled_from(sorted(OBSERVERS)), st.booleans())
def test_every_observer_gives_a_range_inside_what_was_seen_that_holds_zero(values: list[float], observer: str, symmetric: bool) -> None:
    low, high = choose_range(histogram_of(torch.tensor(values)), observer, symmetric)
    assert min(0.0, min(values)) <= low <= 0.0 <= high <= max(0.0, max(values))


@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_zero_is_an_integer_and_the_range_is_covered(low: float, high: float) -> None:
    for rules in (INT8, UINT8, SYMMETRIC):
        found = qparams((low, high), rules)
        assert found.scale > 0
        assert isinstance(found.zero_point, int) and rules.activation_min <= found.zero_point <= rules.activation_max
        assert (rules.activation_min - found.zero_point) * found.scale <= low + 0.51 * found.scale
        assert (rules.activation_max - found.zero_point) * found.scale >= high - 0.51 * found.scale
        if rules.activation_symmetric:
            assert found.zero_point == 0


@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_int8_and_uint8_parameters_differ_by_the_shift_alone(low: float, high: float) -> None:
    signed, unsigned = qparams((low, high), INT8), qparams((low, high), UINT8)
    assert (signed.scale, signed.zero_point + 128) == (unsigned.scale, unsigned.zero_point)


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
@pytest.mark.parametrize("value", [0.0, 3.0, -0.25])
def test_a_constant_tensor_is_represented(observer: str, value: float) -> None:
    low, high = choose_range(histogram_of(torch.full((64,), value)), observer, False)
    assert low <= 0 <= high
    assert error(torch.full((64,), value), (low, high)) < 1e-3 * max(value * value, 1e-6)


@pytest.mark.parametrize("observer", ["histogram", "mse", "percentile"])
def test_a_lone_outlier_is_clipped_where_that_lowers_the_error(observer: str) -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0
    histogram = histogram_of(values)
    chosen = choose_range(histogram, observer, False)
    assert chosen[1] < 16
    assert error(values, chosen) < error(values, choose_range(histogram, "minmax", False))


def test_the_default_observer_is_never_worse_than_the_extremes() -> None:
    generator = torch.Generator().manual_seed(1)
    for power in (1.0, 2.0, 3.0):
        values = torch.randn(50_000, generator=generator).sign() * torch.rand(50_000, generator=generator).pow(power) * 7
        for tensor in (values, values.relu(), -values.abs()):
            histogram = histogram_of(tensor)
            extremes = error(tensor, choose_range(histogram, "minmax", False))
            assert error(tensor, choose_range(histogram, "histogram", False)) <= extremes * 1.02


def test_entropy_keeps_most_of_a_rectified_normal() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(2)).relu()
    low, high = choose_range(histogram_of(values), "entropy", False)
    assert low == 0 and high > 2.5


def test_moving_average_follows_batches() -> None:
    histogram = histogram_of(torch.tensor([-1.0, 1.0]))
    histogram.update(torch.tensor([-101.0, 1.0]))
    assert choose_range(histogram, "moving-average", False) == pytest.approx((-2.0, 1.0))


def test_an_unknown_observer_names_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="histogram"):
        choose_range(histogram_of(torch.ones(1)), "best", False)


def test_rules_with_a_symmetric_unsigned_type_put_zero_in_the_middle() -> None:
    rules = dataclasses.replace(UINT8, activation_symmetric=True)
    assert qparams((-1.0, 0.5), rules).zero_point == 128
