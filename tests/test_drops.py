"""Limits of a drop: points of fractions, bare numbers of metrics in a unit of their own; wrong ones are found before anything is made."""

from __future__ import annotations

import pytest

from edgepress.config_gates import GateLimit
from edgepress.config_steps import QuantizeConfig
from edgepress.drops import check_units, largest
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
    assert largest(plain, "int8", [POINTS], 0.88, "pp") == 0.5
    assert largest(given, "int8", [BARE], 30.0, "dB") == 0.3
    assert largest(plain, "int8", [SIZE, BARE], 30.0, "dB") == 0.02
    assert largest(plain, "int8", [SIZE], -30.0, "dB") == pytest.approx(0.15)
    assert (largest(mixed, "mixed", [], 0.88, "pp"), largest(mixed, "int8", [], 0.88, "pp")) == (0.1, 0.5)
