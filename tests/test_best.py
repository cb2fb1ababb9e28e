"""The rule of `method: best`, on figures made up for the purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgepress import best
from edgepress.best import Best
from edgepress.config import TargetPlan, load, recipe
from edgepress.pipeline import Pipeline
from edgepress.results import Candidate, TargetRun
from edgepress.step import Result, Step
from edgepress.targets.errors import ExecutionError, MeasurementError
from edgepress.targets.nouns import Scheme, Target
from tests.project import digits


@dataclass(frozen=True)
class Figures:
    """A candidate: drop, latency over the float model's, bytes, interval of its drop against the most accurate, MACs in integers."""

    drop: float
    latency: float
    size: int = 100
    worse: tuple[float, float] = (-1.0, 1.0)
    integers: float = 1.0


def result(**value: Any) -> Result:
    return Result(value, Path(), "", False, 0.0)


@dataclass
class Steps:
    """Answers with the figures; `duels` holds intervals of (challenger, leader) where they are not equally fast."""

    figures: dict[str, Figures]
    duels: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def window(self, plan: TargetPlan, prepared: Any, candidate: Candidate) -> Result:
        value = self.figures[candidate.scheme.kind].latency
        if value < 0:
            raise MeasurementError("one call took 0 ns")
        return result(latency_ratio={"value": value, "interval": [value, value], "reference": "fp32"})

    def duel(self, plan: TargetPlan, prepared: Any, challenger: Candidate, leader: Candidate) -> Result:
        return result(latency_ratio={"interval": self.duels.get((challenger.scheme.kind, leader.scheme.kind), (0.99, 1.01))})

    def against_most_accurate(self, plan: TargetPlan, prepared: Any, candidates: list[Candidate]) -> Result:
        found = [self.figures[candidate.scheme.kind] for candidate in candidates]
        return result(**{str(i): {"drop": item.drop, "interval": item.worse} for i, item in enumerate(found)})


def chosen(steps: Steps, tmp_path: Path, runtime: str = "onnxruntime", max_drop: float | None = None) -> tuple[str, dict[str, str]]:
    """The kind that ships, and kind -> why of all."""
    plan = TargetPlan(Target("device", runtime, "CPU", "int8"), (), frozenset())

    def attempt(scheme: Scheme, export: Result | None) -> Candidate:
        figures, folder = steps.figures[scheme.kind], tmp_path / scheme.kind
        (folder / "artifact").mkdir(parents=True)
        (folder / "artifact" / "model").write_bytes(b"x" * figures.size)
        value = {"artifact": {"path": "model", "facts": {}}, "kernels": {"int8_macs_share": figures.integers}}
        made = Result(value, folder, "", False, 0.0)
        return Candidate(scheme, made, result(drop=figures.drop), True, "", execution=made)

    run = TargetRun(plan)
    anything: Any = steps
    winner = Best(anything, run, anything, attempt, max_drop).choose([Scheme("int8", kind) for kind in steps.figures])
    assert winner is not None and winner is run.tried[0]
    assert {id(c) for c in run.reserves} == {id(c) for c in run.tried[1:] if c.export is not None}
    return winner.scheme.kind, {candidate.scheme.kind: candidate.why for candidate in run.tried}


@pytest.fixture(autouse=True)
def no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "native_quantizers", lambda runtime: {})


def test_the_fastest_ships_unless_it_is_less_accurate_by_more_than_chance(tmp_path: Path) -> None:
    figures = {"static": Figures(3.0, 0.3, worse=(0.5, 5.0)), "dynamic": Figures(0.4, 0.5), "weights": Figures(0.1, 1.0)}
    kind, why = chosen(Steps(figures), tmp_path)
    assert kind == "dynamic" and why["dynamic"] == "fastest" and why["weights"] == "slower"
    assert why["static"] == "less accurate than the most accurate by 3.00 (0.50 to 5.00)"


def test_max_drop_takes_the_place_of_chance_where_something_is_within_it(tmp_path: Path) -> None:
    figures = {"static": Figures(0.4, 0.3), "dynamic": Figures(0.2, 0.5)}
    assert chosen(Steps(figures), tmp_path / "both", max_drop=0.5)[0] == "static"
    kind, why = chosen(Steps(figures), tmp_path / "one", max_drop=0.3)
    assert kind == "dynamic" and why["static"] == "drop over 0.3"
    assert chosen(Steps(figures), tmp_path / "none", max_drop=0.1)[0] == "static"


def test_of_those_equally_fast_side_by_side_the_most_accurate_ships(tmp_path: Path) -> None:
    figures = {"static": Figures(0.4, 0.50), "static-matmul": Figures(0.2, 0.51), "dynamic": Figures(0.1, 0.6)}
    kind, why = chosen(Steps(figures), tmp_path / "equal")
    assert kind == "static-matmul" and why["static"] == "as fast within chance, less accurate" and why["dynamic"] == "slower"
    slower = {("static-matmul", "static"): (1.01, 1.03)}
    assert chosen(Steps(figures, slower), tmp_path / "slower")[0] == "static"


def test_a_window_side_by_side_overrules_windows_apart(tmp_path: Path) -> None:
    figures = {"static": Figures(0.1, 0.50), "static-matmul": Figures(0.2, 0.51)}
    assert chosen(Steps(figures, {("static-matmul", "static"): (0.95, 0.98)}), tmp_path)[0] == "static-matmul"


def test_where_latency_cannot_be_measured_the_most_accurate_ships_and_then_the_smallest(tmp_path: Path) -> None:
    figures = {"static": Figures(0.1, 9, size=90), "static-matmul": Figures(0.1, 9, size=80), "weights": Figures(0.2, 9, size=10)}
    kind, why = chosen(Steps(figures), tmp_path, "coreml")
    assert kind == "static-matmul" and why["static"] == "larger" and why["weights"] == "less accurate"


def test_where_latency_cannot_be_measured_integers_stand_for_it(tmp_path: Path) -> None:
    figures = {"static": Figures(0.3, 9), "static-matmul": Figures(0.2, 9, integers=0.8), "weights": Figures(0.0, 9, size=10, integers=0.0)}
    kind, why = chosen(Steps(figures), tmp_path, "tensorrt")
    assert kind == "static" and why["weights"] == "0 % of its multiply-accumulates in integers, 100 % there"


def test_a_candidate_that_cannot_be_timed_does_not_ship(tmp_path: Path) -> None:
    kind, why = chosen(Steps({"static": Figures(0.0, -1), "weights": Figures(0.2, 1.0)}), tmp_path)
    assert kind == "weights" and "one call took 0 ns" in why["static"]


class Executor:
    """Runs no artifact but `sound`."""

    def do(self, step: Step) -> Result:
        if step.params["artifact"] != "sound":
            raise ExecutionError("the runtime refused sample 3")
        return result(executed_by="here")


def test_a_winner_that_fails_on_the_validation_share_gives_way_to_the_next(tmp_path: Path) -> None:
    config = load(digits(tmp_path, compress=[{"quantize": {"method": "best"}}]))
    (plan,) = recipe(config)
    first, second = (
        Candidate(Scheme("int8", kind), result(artifact=artifact), None, True, "")
        for kind, artifact in (("static", "bad"), ("weights", "sound"))
    )
    run = TargetRun(plan, [first, second], first, reserves=[second])
    inputs: Any = type("Prepared", (), {"model": result(signature=None), "data": result()})()
    made = Pipeline(config, (plan,), Executor())._executed(run, inputs)
    assert made is not None and run.chosen is second and run.tried[1] is second
    assert not run.tried[0].held and "refused sample 3" in run.tried[0].why
