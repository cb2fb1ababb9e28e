"""Limits of a drop in the unit of the metric, which is known for certain once the float original is scored.

A drop of a fraction (accuracy, F1) is in percentage points. Other metrics have a unit of their own, and a limit on them is a bare number.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def largest(quantize: QuantizeConfig, precision: str, gates: Sequence[GateLimit], original: float, unit: str) -> float:
    """What a scheme may lose on the selection samples.

    The recipe's `max_drop`, or its budget where that chooses the layers; else half a percentage point. Half a unit of another metric may
    be all of it: there it is what the target's own gate allows, or half a percent of the original's value.

    Args:
        quantize: the step of the recipe.
        precision: of the scheme.
        gates: of the target.
        original: the float original's metric.
        unit: of its drops: `pp`, or the metric's own.

    Returns:
        A drop in `unit`.
    """
    given: Quantity | None = quantize.max_drop
    if precision == "mixed" and quantize.budget is not None and quantize.budget.accuracy_drop is not None:
        given = quantize.budget.accuracy_drop
    if given is not None:
        return given.value
    if unit == "pp":
        return _POINTS
    own = next((gate.limit for gate in gates if gate.name == "accuracy_drop"), None)
    return _SHARE * abs(original) if own is None else own
