"""A precision per layer: the solver against every assignment there is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compress.quantize.fallback import ranked
from edgepress.compress.quantize.mixed import Assignment, Option, front, least_cost, least_noise, options_of, within
from edgepress.compress.quantize.sensitivity import Sensitivity

COSTS = st.integers(0, 2000)
NOISES = st.integers(0, 4000).map(lambda value: value / 1000)
LAYERS = st.lists(st.lists(st.builds(Option, st.just(8), COSTS, NOISES), min_size=1, max_size=3), min_size=0, max_size=6)


def totals(layers: list[list[Option]], choice: list[int]) -> tuple[float, float]:
    chosen = [options[index] for options, index in zip(layers, choice, strict=True)]
    return sum(option.cost for option in chosen), sum(option.noise for option in chosen)


@settings(max_examples=80, deadline=None)
@given(LAYERS, st.integers(0, 6000))
def test_a_budget_buys_the_least_noise_of_all_assignments_within_it(layers: list[list[Option]], budget: int) -> None:
    every = [totals(layers, list(choice)) for choice in product(*(range(len(options)) for options in layers))]
    within = [noise for cost, noise in every if cost <= budget]
    found = least_noise(layers, budget)
    if not within:
        assert found is None
        return
    assert found is not None
    cost, noise = totals(layers, found)
    assert cost <= budget and noise == pytest.approx(min(within), abs=1e-5)


@settings(max_examples=80, deadline=None)
@given(LAYERS, st.integers(0, 12000).map(lambda value: value / 1000))
def test_noise_within_a_limit_is_bought_at_the_lowest_cost_of_all_assignments(layers: list[list[Option]], limit: float) -> None:
    every = [totals(layers, list(choice)) for choice in product(*(range(len(options)) for options in layers))]
    within = [cost for cost, noise in every if noise <= limit * (1 + 1e-9)]
    found = least_cost(layers, limit)
    if not within:
        assert found is None
        return
    assert found is not None
    cost, noise = totals(layers, found)
    assert noise <= limit * (1 + 1e-6) + 1e-5 and cost == pytest.approx(min(within), abs=0.01)


def layer(node: str, noise: float, share: float, weights: int = 100) -> Sensitivity:
    return Sensitivity(node, node, "conv", share, weights, 10, noise)


def test_noises_many_orders_of_magnitude_apart_are_told_apart() -> None:
    layers = [options_of(layer(str(exponent), 10.0**exponent, 0.1), 4) for exponent in range(-8, 3)]
    for count in range(len(layers)):
        assert least_noise(layers, 140 * len(layers) + 260 * count) == [0] * (len(layers) - count) + [1] * count


def test_the_layer_that_spoils_most_for_what_float_costs_comes_first() -> None:
    layers = [layer("large", 0.5, 0.9), layer("spoilt", 0.5, 0.05), layer("tiny and harmless", 1e-3, 1e-6)]
    assert [item.node for item in ranked(layers)] == ["spoilt", "large", "tiny and harmless"]


MODEL = [layer("stem", 3e-4, 0.02, 216), layer("spoilt", 3.7, 0.47, 5184), layer("quiet", 1e-6, 0.4, 5184), layer("product", 0.5, 0.01, 0)]


def test_room_for_bytes_goes_to_the_layers_that_spoil_most_and_one_layer_stays_in_integers() -> None:
    more = 3 * 5184 - 40
    assert within(MODEL, 4, -1) is None and within(MODEL, 4, 0) == Assignment()
    for room, kept in ((700, ("stem",)), (more, ("spoilt",)), (more + 700, ("stem", "spoilt"))):
        assert within(MODEL, 4, room) == Assignment(kept)
    assert within(MODEL[:3], 4, 1e9) == Assignment(("stem", "spoilt"))


def test_a_product_without_a_weight_costs_no_bytes_and_stays_in_integers() -> None:
    found = [within(MODEL, 4, 1e9), *front(MODEL, 4)]
    assert all(assignment is not None and "product" not in assignment.float_layers for assignment in found)


def test_sets_to_try_grow_from_the_cheapest_that_quietens_most_to_all_but_one_layer() -> None:
    sets = front(MODEL[:3], 4)
    assert sets[0] == Assignment(("spoilt",)) and sets[-1] == Assignment(("stem", "spoilt")) and len(sets) == len({*sets})
    assert front([layer("only", 1.0, 1.0)], 4) == [] and front([layer("a", 0.0, 0.5), layer("b", 0.0, 0.5)], 4) == [Assignment(("b",))]


def narrow(node: str, noise: float, int4_noise: float, weights: int, kind: str = "conv", int2_noise: float | None = None) -> Sensitivity:
    return Sensitivity(node, node, kind, 0.1, weights, 10, noise, int4_noise, int2_noise)


NARROW = [narrow("stem", 1e-4, 1e-1, 500), narrow("body", 1e-5, 1e-3, 5000), narrow("words", 1e-6, 1e-4, 9000, kind="embedding")]


def test_room_below_8_bits_is_found_in_the_4_bits_that_add_the_least_noise() -> None:
    assert within(NARROW, 4, -4500) == Assignment((), ("words",)), "the table saves 4,500 bytes and is the quietest"
    assert within(NARROW, 4, -6000) == Assignment((), ("body", "words"))
    assert within(NARROW, 4, -7250) == Assignment((), ("stem", "body", "words")) and within(NARROW, 4, -7251) is None
    kept = within(NARROW, 4, -1000)
    assert kept == Assignment(("stem",), ("words",)), "what the table saves buys float where 8 bits are loudest"


def test_room_below_4_bits_is_found_in_the_2_bits_that_add_the_least_noise() -> None:
    body, words = narrow("body", 1e-5, 1e-3, 5000, int2_noise=1e-1), narrow("words", 1e-6, 1e-4, 9000, "embedding", int2_noise=2e-2)
    layers = [NARROW[0], body, words]
    assert within(layers, 4, -8000) == Assignment((), ("body",), ("words",)), "2 bits for the table leave the body in 4"
    assert within(layers, 4, -10750) == Assignment((), ("stem",), ("body", "words")) and within(layers, 4, -10751) is None
    assert front(layers, 4)[0] == Assignment((), ("stem",), ("body", "words"))
    assert within(layers, 4, -4500) == Assignment((), ("words",)), "4 bits where they reach"


def test_a_front_with_4_bits_begins_with_all_of_them_and_never_keeps_a_table_in_float() -> None:
    sets = front(NARROW, 4)
    assert sets[0] == Assignment((), ("stem", "body", "words")) and sets[-1] == Assignment(("stem",))
    assert all("words" not in found.float_layers for found in sets) and within(NARROW, 4, 1e9) == Assignment(("stem",))
