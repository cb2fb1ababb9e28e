"""Which scheme of a ladder ships, on figures made up for the purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from edgepress.config import TargetPlan, load, recipe
from edgepress.ladder import RESCUE, Ladder
from edgepress.results import Candidate, TargetRun
from edgepress.step import Result
from edgepress.targets.nouns import Scheme
from tests.project import digits

#: Of a drop: held, over the limit by no more than chance, or over it for certain.
HELD, CHANCE, OVER = (True, False), (False, True), (False, False)
NOTHING = {"static": (3.0, OVER), "static-matmul": (2.0, OVER), "dynamic": (2.5, OVER), "gptq": (2.5, OVER)}


class Tried(Ladder):
    """Tries schemes by made-up figures: kind, or `gptq` where it is refined -> drop and what it means."""

    figures: dict[str, tuple[float, tuple[bool, bool]]]

    def _tries(self, plan: TargetPlan, prepared: Any, scheme: Scheme, refiners: Sequence[str], only: bool) -> list[Candidate]:
        drop, (held, chance) = self.figures["gptq" if refiners == RESCUE else scheme.kind]
        score = Result({"drop": drop}, Path(), "", False, 0.0)
        return [Candidate(scheme, score, score, held, "gptq" if refiners else "", chance=chance)]


@pytest.mark.parametrize(
    ("figures", "ships", "tried"),
    [
        ({"static": (0.1, HELD)}, "static", 1),
        # what holds beside it is better than what chance may explain
        ({"static": (0.6, CHANCE), "static-matmul": (0.2, HELD)}, "static-matmul", 2),
        # before float arithmetic the one that lost least ships
        ({"static": (0.7, CHANCE), "static-matmul": (0.6, CHANCE), "dynamic": (2.0, OVER), "gptq": (0.8, CHANCE)}, "static-matmul", 4),
        ({"static": (0.7, CHANCE), "static-matmul": (2.0, OVER), "dynamic": (2.0, OVER), "gptq": (0.6, CHANCE)}, "gptq", 4),
        (NOTHING | {"weights": (0.1, HELD)}, "weights", 5),
        (NOTHING | {"weights": (2.2, OVER)}, "static-matmul", 5),
    ],
)
def test_what_lost_no_more_than_chance_ships_before_float_arithmetic(
    figures: dict[str, tuple[float, tuple[bool, bool]]], ships: str, tried: int, tmp_path: Path
) -> None:
    config = load(digits(tmp_path, ["onnxruntime"], compress=[{"quantize": {"precision": "int8"}}]))
    (plan,) = recipe(config)
    ladder = Tried(config, Mock(), Mock(), Mock())
    ladder.figures = figures
    run, prepared = TargetRun(plan), Mock()
    ladder.choose(run, prepared)
    assert run.chosen is not None and len(run.tried) == tried
    assert (run.chosen.why or run.chosen.scheme.kind) == ships and any(run.chosen is candidate for candidate in run.tried)
    assert run.chosen.held == any(held or chance for _, (held, chance) in figures.values())
