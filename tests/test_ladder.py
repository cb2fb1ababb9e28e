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
from edgepress.targets.errors import LimitError
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


class Slow(Tried):
    """Of a kind without figures nothing can be made in the time there is."""

    def _tries(self, plan: TargetPlan, prepared: Any, scheme: Scheme, refiners: Sequence[str], only: bool) -> list[Candidate]:
        if scheme.kind not in self.figures:
            raise LimitError(f"export {scheme.kind}: the process ran past its timeout of 4 s", "", "Raise `run.timeout` (4 s).")
        return super()._tries(plan, prepared, scheme, refiners, only)


def climbed(kind: type[Tried], figures: dict[str, tuple[float, tuple[bool, bool]]], folder: Path, **quantize: Any) -> TargetRun:
    config = load(digits(folder, ["onnxruntime"], compress=[{"quantize": {"precision": "int8", **quantize}}]))
    (plan,) = recipe(config)
    ladder, run = kind(config, Mock(), Mock(), Mock()), TargetRun(plan)
    ladder.figures = figures
    ladder.choose(run, Mock())
    return run


@pytest.mark.parametrize("quantize", [{}, {"fallback": True}])
def test_a_scheme_that_runs_into_a_limit_is_the_last_that_is_tried(tmp_path: Path, quantize: dict[str, Any]) -> None:
    with pytest.raises(LimitError, match=r"4 s: schemes after it were not tried, as they need about as much.*Raise `run.timeout`"):
        climbed(Slow, {}, tmp_path / "none", **quantize)
    run = climbed(Slow, {"static": (2.0, OVER)}, tmp_path / "one")
    assert [candidate.scheme.kind for candidate in run.tried] == ["static", "static-matmul"]
    assert run.chosen is run.tried[0] and "not tried" in run.tried[1].why


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
    run = climbed(Tried, figures, tmp_path)
    assert run.chosen is not None and len(run.tried) == tried
    assert (run.chosen.why or run.chosen.scheme.kind) == ships and any(run.chosen is candidate for candidate in run.tried)
    assert run.chosen.held == any(held or chance for _, (held, chance) in figures.values())
