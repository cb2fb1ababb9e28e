"""Limits of a drop in the unit of the metric, which is known for certain once the float original is scored.

A drop of a fraction (accuracy, F1) is in percentage points. Other metrics have a unit of their own, and a limit on them is a bare number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepress.config_gates import GateLimit
from edgepress.config_steps import QuantizeConfig
from edgepress.quantities import Quantity
from edgepress.targets.errors import ConfigError

#: What a scheme may lose on the selection samples where the recipe does not say: percentage points, or a share of the original's value.
_POINTS, _SHARE = 0.5, 0.005


def check_units(gates: Sequence[GateLimit], quantize: QuantizeConfig | None, metric: str, unit: str) -> None:
    """Every limit of a drop is in the unit that the metric's drops have.

    Args:
        gates: of all targets.
        quantize: the step of the recipe.
        metric: as the recipe names it.
        unit: `pp`, or the metric's own.

    Raises:
        ConfigError: one is not; it names the limit.
    """
    limits = {gate.name.replace("baseline.", "against_baseline."): (gate.limit, gate.unit) for gate in gates if gate.name.endswith("_drop")}
    if quantize is not None:
        budget = quantize.budget.accuracy_drop if quantize.budget else None
        given = {"quantize.max_drop": quantize.max_drop, "quantize.budget.accuracy_drop": budget}
        limits |= {name: (value.value, value.unit) for name, value in given.items() if value is not None}
    for name, (value, own) in limits.items():
        if (own == "pp") == (unit == "pp"):
            continue
        if unit == "pp":
            raise ConfigError(f"{name} is {value:g} without a unit", f"{metric} is a fraction", f"Write e.g. {value:g}pp.")
        raise ConfigError(
            f"{name} is {value:g}pp",
            f"{metric} is no fraction, its drops are in its own unit",
            "Write a bare number in that unit, e.g. 0.01.",
        )


@dataclass(frozen=True)
class Allowance:
    """What a scheme may lose on the selection samples.

    Attributes:
        limit: a drop, in the unit of the metric's drops.
        by_chance: a drop up to this is undecided where its paired interval contains zero; `limit` where the recipe set that.
    """

    limit: float
    by_chance: float

    def is_chance(self, drop: float, low: float) -> bool:
        """Is a drop whose interval begins at `low` over the limit by no more than chance?"""
        return self.limit < drop <= self.by_chance and low <= 0


def allowance(quantize: QuantizeConfig, precision: str, gates: Sequence[GateLimit], original: float, unit: str) -> Allowance:
    """What a scheme may lose on the selection samples.

    The recipe's `max_drop`, or its budget where that chooses the layers. Else what the target's own gate allows, in percentage points half
    a one at most: half a unit of another metric may be all of it, or nothing. Without a gate it is half a percent of the original's value.
    Few samples decide such a limit by chance (of 1,024, eight that change for the worse and two for the better are 0.59 pp):
    where the recipe does not set it, a drop up to twice as much is undecided if its paired interval contains zero.

    Args:
        quantize: the step of the recipe.
        precision: of the scheme.
        gates: of the target.
        original: the float original's metric.
        unit: of its drops: `pp`, or the metric's own.
    """
    given: Quantity | None = quantize.max_drop
    if precision == "mixed" and quantize.budget is not None and quantize.budget.accuracy_drop is not None:
        given = quantize.budget.accuracy_drop
    if given is not None:
        return Allowance(given.value, given.value)
    own = next((gate.limit for gate in gates if gate.name == "accuracy_drop"), None)
    if unit == "pp":
        return Allowance(_POINTS if own is None else min(own, _POINTS), 2 * _POINTS)
    limit = _SHARE * abs(original) if own is None else own
    return Allowance(limit, 2 * limit)
