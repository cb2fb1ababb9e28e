"""A precision for every layer: the integer program that spends a budget where it buys the most accuracy.

Choose one option per layer; what all of them cost, and the noise all of them add, are sums (Hubara et al. 2021, "Accurate Post Training
Quantization with Small Calibration Sets", section 3.4). Solved exactly by `scipy.optimize.milp` (HiGHS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgepress.compress.quantize.sensitivity import Sensitivity

#: Bits of the two precisions of a layer.
FLOAT, INTEGER = 32, 8
#: Bytes of one scale.
_SCALE_BYTES = 4
#: A limit is kept up to this share of it: sums are of floating-point numbers.
_SLACK = 1e-9
#: The largest number of the objective: the solver stops within 1e-6 of the best one, whatever its scale.
_SCALE = 1e6


@dataclass(frozen=True)
class Option:
    """One precision of one layer.

    Attributes:
        bits: of its weight.
        cost: what it adds to the budget's quantity, e.g. bytes; zero or more.
        noise: what it adds to the noise at the model's outputs; zero or more.
    """

    bits: int
    cost: float
    noise: float


def options_of(layer: Sensitivity, float_bytes: int) -> tuple[Option, Option]:
    """Integers and float, with the bytes each stores.

    Args:
        layer: as measured.
        float_bytes: of one weight that stays float.
    """
    return (
        Option(INTEGER, layer.weights + _SCALE_BYTES * layer.channels, layer.noise),
        Option(FLOAT, layer.weights * float_bytes, 0.0),
    )


def least_noise(layers: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """The options that add the least noise at a cost within `budget`.

    Args:
        layers: the options of each layer, one or more.
        budget: for the costs of all layers together.

    Returns:
        The index of each layer's option; None where even the cheapest cost more.
    """
    return _solved(layers, [[o.noise for o in options] for options in layers], [[o.cost for o in options] for options in layers], budget)


def least_cost(layers: Sequence[Sequence[Option]], noise: float) -> list[int] | None:
    """The cheapest options that add at most `noise` together; see `least_noise`."""
    return _solved(layers, [[o.cost for o in options] for options in layers], [[o.noise for o in options] for options in layers], noise)


def _solved(
    layers: Sequence[Sequence[Option]], objective: Sequence[Sequence[float]], spent: Sequence[Sequence[float]], limit: float
) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not layers:
        return []
    limit *= 1 + _SLACK
    least = sum(min(row) for row in spent)
    if least > limit:
        return None
    # What every choice adds is taken off and both rows are scaled, because the solver's tolerances are absolute.
    over = np.concatenate([np.array(row, dtype=np.float64) - min(row) for row in spent])
    worth = np.concatenate([np.array(row, dtype=np.float64) - min(row) for row in objective])
    room = limit - least
    allowed = over <= room
    over = np.where(allowed, over, 0.0)
    largest_over, largest_worth = over.max(initial=0.0) or 1.0, worth[allowed].max(initial=0.0) or 1.0
    one = np.zeros((len(layers), len(over)))
    starts = np.cumsum([0, *(len(options) for options in layers)])
    for row, (start, end) in enumerate(pairwise(starts)):
        one[row, start:end] = 1
    found = milp(
        np.where(allowed, worth, 0.0) * (_SCALE / largest_worth),
        integrality=np.ones(len(over)),
        bounds=Bounds(0, allowed.astype(np.float64)),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(over / largest_over, -np.inf, room / largest_over)],
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    return [int(np.argmax(found.x[start:end])) for start, end in pairwise(starts)]
