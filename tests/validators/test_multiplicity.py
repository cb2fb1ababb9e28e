"""Many gates raise no more false alarms than one, and a clear failure stays one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.targets.nouns import Evidence
from edgepress.validators.gates import Gate, judge
from edgepress.validators.multiplicity import Judged, holm

LIMIT = 1.0


def judged(value: float, half: float = 1.0, gate: str = "accuracy_drop", unit: str = "pp") -> Judged:
    asked = Gate(gate, LIMIT, unit)
    found = Evidence(gate, value, unit, (value - half, value + half), 1000)
    return Judged(asked, found, judge([asked], [found])[0])


def size(value: float) -> Judged:
    asked, found = Gate("size", LIMIT, "bytes"), Evidence("size", value, "bytes")
    return Judged(asked, found, judge([asked], [found])[0])


def words(family: list[Judged]) -> list[str]:
    return [verdict.verdict for verdict in holm(family)]


def test_a_failure_that_may_be_chance_among_many_is_undecided_and_says_what_decides() -> None:
    close = judged(2.1)  # its interval begins at 1.1
    assert words([close]) == ["fail"]
    adjusted = holm([close, *[judged(-1.0)] * 9])[0]
    assert adjusted.verdict == "undecided" and adjusted.next_step is not None
    assert "one of 10 gates" in adjusted.next_step and "multiplicity: each" in adjusted.next_step
    assert adjusted.observed == close.verdict.observed and adjusted.interval == close.verdict.interval


def test_a_clear_failure_stands_among_any_number() -> None:
    assert words([judged(5.0), *[judged(-1.0)] * 99])[0] == "fail"


def test_passes_and_exact_facts_are_left_alone() -> None:
    family = [
        judged(-1.0),
        size(2.0),
        judged(1.0),
        size(0.5),
        Judged(Gate("accuracy_drop", LIMIT, "pp"), None, judge([Gate("accuracy_drop", LIMIT, "pp")], [])[0]),
    ]
    assert words(family) == ["pass", "fail", "undecided", "pass", "error"]


def test_exact_facts_do_not_count_as_tests() -> None:
    assert words([judged(2.1), *[size(0.5)] * 50])[0] == "fail"


def test_the_step_down_gives_the_smaller_failures_their_own_threshold() -> None:
    """Holm, not Bonferroni: with two tests the second largest is compared with the whole level once the first is out."""
    assert words([judged(9.0), judged(2.05)]) == ["fail", "fail"]
    assert words([judged(2.05), judged(-9.0)])[0] == "undecided"


@given(st.lists(st.floats(-5, 10), min_size=1, max_size=30), st.randoms())
def test_the_order_of_gates_does_not_matter_and_none_gets_worse(values: list[float], random: object) -> None:
    family = [judged(value) for value in values]
    before = [item.verdict.verdict for item in family]
    after = words(family)
    assert all(new == old or (old, new) == ("fail", "undecided") for old, new in zip(before, after, strict=True))
    assert words(family[::-1]) == after[::-1]


@pytest.mark.parametrize("gates", [1, 5, 20])
def test_false_alarms_of_a_run_stay_at_those_of_one_gate(gates: int) -> None:
    """Every true value at its limit: by themselves twenty gates would fail two of five runs."""
    draw = np.random.default_rng(0)
    runs = [[judged(float(value)) for value in LIMIT + draw.standard_normal(gates) / 1.959964] for _ in range(1500)]
    alone = np.mean([any(item.verdict.verdict == "fail" for item in run) for run in runs])
    together = np.mean([any(word == "fail" for word in words(run)) for run in runs])
    assert together <= 0.025 + 3 * (0.025 * 0.975 / 1500) ** 0.5
    assert gates == 1 or alone > 2 * together
