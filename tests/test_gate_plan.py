"""`edgepress gate --plan`: what the data at hand can decide, before anything is compressed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepress.config import load, recipe
from edgepress.gate_plan import plan_gates, smallest_drops
from edgepress.targets.errors import EdgepressError
from tests.project import digits, edgepress

ORIGINAL = {"samples": 5000, "value": 0.8838, "unit": "pp", "zero_one": True}


def test_five_thousand_samples_gate_half_a_point_and_not_a_tenth() -> None:
    assert 0.4 < smallest_drops(ORIGINAL, 0.95)[0.02] < 0.8
    assert smallest_drops(ORIGINAL, 0.95)[0.02] < smallest_drops(ORIGINAL, 0.99)[0.02] < smallest_drops(ORIGINAL, 0.99)[0.05]


def test_every_accuracy_gate_is_planned_by_its_own_limit(tmp_path: Path) -> None:
    targets = [
        "numpy",
        {"numpy:strict": {"gates": {"accuracy_drop": {"max": "0.1pp"}}}},
        {"numpy:open": {"gates": {"accuracy_drop": False}}},
    ]
    plans = recipe(load(digits(tmp_path, targets)))
    wide, strict = plan_gates(plans, ORIGINAL)
    assert (wide.target, strict.target) == ("numpy", "numpy:strict")
    assert wide.decidable and wide.needed is not None and wide.needed < 5000
    assert not strict.decidable and strict.needed is not None and strict.needed > 50_000


def test_scores_that_are_not_right_or_wrong_are_refused(tmp_path: Path) -> None:
    plans = recipe(load(digits(tmp_path)))
    with pytest.raises(EdgepressError, match="not 0 or 1"):
        plan_gates(plans, ORIGINAL | {"zero_one": False})


def test_a_recipe_without_an_accuracy_gate_is_refused(tmp_path: Path) -> None:
    plans = recipe(load(digits(tmp_path, gates={"size": {"max": "1MB"}})))
    with pytest.raises(EdgepressError, match="no accuracy gate"):
        plan_gates(plans, ORIGINAL)


def test_the_command_line_says_what_is_decidable_and_exits_undecided_where_it_is_not(tmp_path: Path) -> None:
    path = digits(tmp_path, gates={"accuracy_drop": {"max": "0.2pp"}})
    done = edgepress("gate", path, "--plan")
    assert done.returncode == 3, done.stderr
    assert "900 samples can gate" in done.stdout and "not 0.2 pp" in done.stdout
