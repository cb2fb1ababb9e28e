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


def within(layers: Sequence[Sensitivity], float_bytes: int, room: float) -> list[str] | None:
    """The layers that float arithmetic serves best within a budget of bytes.

    Args:
        layers: as measured; those without a weight of their own stay in integers, because float would be free.
        float_bytes: of one weight that stays float.
        room: bytes that the weights may take beyond what all of them take in integers.

    Returns:
        Their nodes; at least one layer stays in integers. None where `room` is negative.
    """
    own = _weighted(layers)
    options = [options_of(layer, float_bytes) for layer in own]
    choice = least_noise(options, sum(integer.cost for integer, _ in options) + room)
    return None if choice is None else _float_nodes(layers, own, choice)


def front(layers: Sequence[Sensitivity], float_bytes: int) -> list[list[str]]:
    """Sets of layers to keep in float, from the smallest file to the least noise.

    The limit of the noise is halved from set to set, and each set is the cheapest within its limit; the last one keeps all but the
    quietest layer in float.
    """
    own = _weighted(layers)
    options = [options_of(layer, float_bytes) for layer in own]
    limit, quietest = sum(layer.noise for layer in own), min((layer.noise for layer in own if layer.noise > 0), default=0.0)
    found: list[list[str]] = []
    while limit > quietest > 0:
        limit /= 2
        choice = least_cost(options, limit)
        nodes = _float_nodes(layers, own, choice or [0] * len(own))
        if nodes and nodes not in found:
            found.append(nodes)
    last = _float_nodes(layers, own, [1] * len(own))
    return found if last in found or not last else [*found, last]


def _weighted(layers: Sequence[Sensitivity]) -> list[Sensitivity]:
    return [layer for layer in layers if layer.weights]


def _float_nodes(layers: Sequence[Sensitivity], own: Sequence[Sensitivity], choice: Sequence[int]) -> list[str]:
    """The layers whose option is float; the quietest of all goes back to integers where none would be left."""
    chosen = [layer for layer, index in zip(own, choice, strict=True) if index]
    if len(chosen) == len(layers):
        chosen.remove(min(chosen, key=lambda layer: layer.noise))
    return [layer.node for layer in chosen]


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
