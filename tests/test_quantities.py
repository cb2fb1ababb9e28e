from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.quantities import DIMENSIONS, DURATION, POINTS, RATIO, SIZE, Dimension, Quantity, QuantityError, human, parse


@pytest.mark.parametrize(
    ("text", "dimension", "base"),
    [
        ("1.0pp", POINTS, 1.0),
        ("0.5%", RATIO, 0.005),
        ("5ms", DURATION, 0.005),
        ("2us", DURATION, 2e-6),
        ("30m", DURATION, 1800.0),
        ("30s", DURATION, 30.0),
        ("1h", DURATION, 3600.0),
        ("2MB", SIZE, 2_000_000.0),
        ("2MiB", SIZE, 2_097_152.0),
        ("512 kB", SIZE, 512_000.0),
        ("1.5GiB", SIZE, 1.5 * 1024**3),
        (" .5 MB ", SIZE, 500_000.0),
        ("1e3 B", SIZE, 1000.0),
    ],
)
def test_what_people_write_is_read_in_base_units(text: str, dimension: Dimension, base: float) -> None:
    assert parse(text, dimension).base == pytest.approx(base, rel=1e-12)


@pytest.mark.parametrize("value", [0.8, 1, "0.8", "80%"])
def test_a_ratio_needs_no_unit(value: object) -> None:
    assert parse(value, RATIO).base == pytest.approx(1.0 if value == 1 else 0.8)


@pytest.mark.parametrize(
    ("value", "dimension", "fragments"),
    [
        ("2", SIZE, ["'2' has no unit", "2MB or 2MiB"]),
        (2, SIZE, ["'2' has no unit", "2MB or 2MiB"]),
        (1.5, POINTS, ["'1.5' has no unit", "1.5pp"]),
        ("2ms", SIZE, ["is a duration, a size is needed", "2MB or 2MiB"]),
        ("2MB", DURATION, ["is a size, a duration is needed", "2ms or 2s"]),
        ("1%", POINTS, ["relative or an absolute", "1pp"]),
        ("2mb", SIZE, ["unknown unit 'mb'", "Did you mean 2MB?"]),
        ("2KB", SIZE, ["unknown unit 'KB'", "kB", "KiB"]),
        ("3 parsecs", SIZE, ["unknown unit 'parsecs'", "Units: B, kB"]),
        ("1,5MB", SIZE, ["unknown unit ',5MB'"]),
        ("-1MB", SIZE, ["negative", "1MB"]),
        ("1e999MB", SIZE, ["not a usable number"]),
        ("lots", SIZE, ["'lots' is not a size", "1MB"]),
        ("", SIZE, ["'' is not a size"]),
        (None, SIZE, ["'None' is not a size"]),
        (True, SIZE, ["'True' is not a size"]),
        ([1], SIZE, ["is not a size"]),
        (math.nan, SIZE, ["is not a size"]),
    ],
)
def test_a_wrong_quantity_says_what_to_write(value: object, dimension: Dimension, fragments: list[str]) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(value, dimension)
    for fragment in fragments:
        assert fragment in str(caught.value)


@given(st.data())
def test_what_is_formatted_reads_back_the_same(data: st.DataObject) -> None:
    dimension = data.draw(st.sampled_from(DIMENSIONS))
    unit = data.draw(st.sampled_from(sorted(dimension.units)))
    value = data.draw(st.floats(min_value=0, max_value=1e200, allow_nan=False))
    quantity = Quantity(value, unit, dimension)
    assert parse(str(quantity), dimension) == quantity


@given(st.floats(min_value=1e-9, max_value=1e6), st.sampled_from([SIZE, DURATION]))
def test_the_form_for_people_is_right_to_three_digits(value: float, dimension: Dimension) -> None:
    value = max(value, 1e-7) if dimension is DURATION else max(value, 1.0) * 1e3
    assert parse(human(value, dimension), dimension).base == pytest.approx(value, rel=6e-3)


@given(st.text(max_size=12))
def test_any_text_gives_a_quantity_or_a_quantity_error(text: str) -> None:
    try:
        quantity = parse(text, SIZE)
    except QuantityError as error:
        assert error.remedy
    else:
        assert quantity.base >= 0


def test_people_read_sizes_and_times_in_fitting_units() -> None:
    assert human(1_094_288, SIZE) == "1.09 MB"
    assert human(512, SIZE) == "512 B"
    assert human(0.0456, DURATION) == "45.6 ms"
    assert human(0.123, POINTS) == "0.12 pp"
    assert human(0.8, RATIO) == "0.800"
