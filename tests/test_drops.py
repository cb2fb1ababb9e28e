"""Limits of a drop: points of fractions, bare numbers of metrics in a unit of their own; wrong ones are found before anything is made."""

from __future__ import annotations

import pytest

from edgepress.config_gates import GateLimit
from edgepress.config_steps import QuantizeConfig
from edgepress.drops import Allowance, allowance, check_units
from edgepress.targets.errors import ConfigError

POINTS, BARE = GateLimit("accuracy_drop", 1.0, "pp"), GateLimit("accuracy_drop", 0.02, "")
SIZE = GateLimit("size", 1e6, "bytes")


def step(**settings: object) -> QuantizeConfig:
    return QuantizeConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("gates", "quantize", "unit", "words"),
    [
        ([SIZE, POINTS], None, "r2_score", "accuracy_drop is 1pp: m is no fraction"),
        ([BARE], None, "pp", "accuracy_drop is 0.02 without a unit: m is a fraction. Write e.g. 0.02pp"),
        ([GateLimit("baseline.accuracy_drop", 0.3, "pp")], None, "dB", "against_baseline.accuracy_drop is 0.3pp"),
        ([GateLimit("slice_drop", 3.0, "pp")], None, "dB", "slice_drop is 3pp"),
        ([], step(max_drop="0.3pp"), "dB", "quantize.max_drop is 0.3pp"),
        (
            [],
            step(precision="mixed", budget={"accuracy_drop": "0.3"}),
            "pp",
            "quantize.budget.accuracy_drop",
        ),
    ],
)
def test_a_limit_in_another_unit_is_refused_with_its_name(
    gates: list[GateLimit], quantize: QuantizeConfig | None, unit: str, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check_units(gates, quantize, "m", unit)
    assert words in str(error.value)


def test_limits_in_the_unit_of_the_metric_pass() -> None:
    check_units([SIZE, POINTS], step(max_drop="0.3pp"), "accuracy", "pp")
    check_units([SIZE, BARE], step(max_drop="0.3"), "m", "dB")


def test_what_a_scheme_may_lose() -> None:
    plain, given = step(), step(max_drop="0.3")
    mixed = step(precision="mixed", budget={"accuracy_drop": "0.1pp"})
    assert allowance(plain, "int8", [POINTS], 0.88, "pp") == Allowance(0.5, 1.0)
    assert allowance(plain, "int8", [GateLimit("accuracy_drop", 0.2, "pp")], 0.88, "pp") == Allowance(0.2, 1.0)
    assert allowance(given, "int8", [BARE], 30.0, "dB") == Allowance(0.3, 0.3)
    assert allowance(plain, "int8", [SIZE, BARE], 30.0, "dB") == Allowance(0.02, 0.04)
    assert allowance(plain, "int8", [SIZE], -30.0, "dB").limit == pytest.approx(0.15)
    found = [allowance(mixed, precision, [], 0.88, "pp").limit for precision in ("mixed", "int8")]
    assert found == [0.1, 0.5]


@pytest.mark.parametrize(
    ("drop", "low", "chance"),
    [(0.4, -0.1, False), (0.7, -0.1, True), (0.7, 0.0, True), (0.7, 0.1, False), (1.0, -0.4, True), (1.1, -0.4, False)],
)
def test_a_drop_over_the_default_limit_is_chance_up_to_twice_as_much(drop: float, low: float, chance: bool) -> None:
    assert Allowance(0.5, 1.0).is_chance(drop, low) == chance
    assert not Allowance(0.5, 0.5).is_chance(drop, low), "a limit of the recipe is what it says"
