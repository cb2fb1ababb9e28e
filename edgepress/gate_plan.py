"""What accuracy gates can decide with the validation samples at hand, before anything is compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepress.config import TargetPlan
from edgepress.targets.errors import EdgepressError, MeasurementError
from edgepress.validators.planning import plan_margin, plan_samples

#: Shares of samples that may change sides: on which exactly one of the two models is right.
SHARES = (0.01, 0.02, 0.05)
#: What gates are judged at; the int8 files of the benchmarks moved 1 to 3 %.
EXPECTED = 0.02


@dataclass(frozen=True)
class PlannedGate:
    """An accuracy gate against the samples at hand, if `EXPECTED` of them change sides and nothing is lost.

    Attributes:
        target: its name.
        limit: of the gate, in pp.
        confidence: of its interval.
        smallest: the smallest limit, in pp, that the samples decide in four of five runs.
        needed: samples that the gate's own limit needs; None where no practical number does.
    """

    target: str
    limit: float
    confidence: float
    smallest: float
    needed: int | None

    @property
    def decidable(self) -> bool:
        """Is what there is enough?"""
        return self.smallest <= self.limit


def plan_gates(plans: Sequence[TargetPlan], original: Mapping[str, Any]) -> list[PlannedGate]:
    """Every accuracy gate of a recipe.

    Args:
        plans: the targets.
        original: what `edgepress.steps.score:original` returns.

    Raises:
        EdgepressError: the metric does not score samples 0 or 1, or no target has such a gate.
    """
    if not original["zero_one"]:
        raise EdgepressError(
            "gates of this metric cannot be planned before a run",
            "its scores are not 0 or 1, so nobody knows how far compression moves them",
            "Run once: an undecided gate says how many samples would decide it.",
        )
    planned = []
    for plan in plans:
        for gate in plan.gates:
            if gate.name == "accuracy_drop":
                smallest = smallest_drops(original, gate.confidence)[EXPECTED]
                needed = _needed(gate.limit / 100, original["value"], gate.confidence)
                planned.append(PlannedGate(plan.target.name, gate.limit, gate.confidence, smallest, needed))
    if not planned:
        raise EdgepressError("the recipe has no accuracy gate", "there is nothing to plan", "Add e.g. `accuracy_drop: {max: 1.0pp}`.")
    return planned


def smallest_drops(original: Mapping[str, Any], confidence: float) -> dict[float, float]:
    """The smallest limit of a drop, in pp, that the samples decide; by the share of samples that change sides."""
    return {share: 100 * plan_margin(original["samples"], share, original["value"], confidence=confidence) for share in SHARES}


def _needed(margin: float, accuracy: float, confidence: float) -> int | None:
    try:
        return plan_samples(margin, EXPECTED, accuracy, confidence=confidence)
    except MeasurementError:
        return None
