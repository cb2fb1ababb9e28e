"""A precision for every layer: the integer program that spends a budget where it buys the most accuracy.

Choose one option per layer; what all of them cost, and the noise all of them add, are sums (Hubara et al. 2021, "Accurate Post Training
Quantization with Small Calibration Sets", section 3.4). Solved exactly by `scipy.optimize.milp` (HiGHS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgepress.compress.quantize.sensitivity import TABLE, Sensitivity

#: Bits of the precisions of a layer.
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
        cost: what it adds to the budget's quantity: bytes, or time, which may be negative.
        noise: what it adds to the noise at the model's outputs; zero or more.
    """

    bits: int
    cost: float
    noise: float


@dataclass(frozen=True)
class Assignment:
    """The layers that do not have 8 bits, by their node; the fields are those of `Scheme`."""

    float_layers: tuple[str, ...] = ()
    int4_layers: tuple[str, ...] = ()
    int2_layers: tuple[str, ...] = ()


def options_of(layer: Sensitivity, float_bytes: int) -> tuple[Option, ...]:
    """8 bits, 4 and 2 where the layer can have them, and float where it is no table, with the bytes each stores.

    The noise that a table has in 8 bits is not counted, because nothing avoids it.

    Args:
        layer: as measured.
        float_bytes: of one weight that stays float.
    """
    scales, least = _SCALE_BYTES * layer.channels, layer.noise if layer.kind == TABLE else 0.0
    found = [Option(INTEGER, layer.weights + scales, layer.noise - least)]
    for bits, noise in ((4, layer.int4_noise), (2, layer.int2_noise)):
        if noise is not None:
            found.append(Option(bits, -(-layer.weights * bits // 8) + scales, max(noise - least, 0.0)))
    if layer.kind != TABLE:
        found.append(Option(FLOAT, layer.weights * float_bytes, 0.0))
    return tuple(found)


def within(layers: Sequence[Sensitivity], float_bytes: int, room: float) -> Assignment | None:
    """The precisions with the least noise within a budget of bytes.

    Args:
        layers: as measured; those without a weight of their own stay in integers, because float would be free.
        float_bytes: of one weight that stays float.
        room: bytes that the weights may take beyond what all of them take in 8 bits; negative where they have to take less.

    Returns:
        At least one layer is in integers. None where no precisions take as little.
    """
    own = _weighted(layers)
    options = [options_of(layer, float_bytes) for layer in own]
    choice = least_noise(options, sum(each[0].cost for each in options) + room)
    return None if choice is None else _assignment(layers, own, options, choice)


def within_time(layers: Sequence[Sensitivity], costs: Mapping[str, float], room: float) -> Assignment | None:
    """The layers in float with the least noise within a budget of time.

    Args:
        layers: as measured; products of two activations take part.
        costs: node -> what float takes longer than integers there; negative where it takes less.
        room: time beyond that of all layers in integers; negative where it has to be less.

    Returns:
        At least one layer is in integers. None where no layers in float take as little.
    """
    own = [layer for layer in layers if layer.kind != TABLE]
    options = [(Option(INTEGER, 0.0, layer.noise), Option(FLOAT, costs[layer.node], 0.0)) for layer in own]
    choice = least_noise(options, room)
    if choice is not None and all(choice):  # one stays in integers: which of them?
        forced = [least_noise([*options[:at], each[:1], *options[at + 1 :]], room) for at, each in enumerate(options)]
        noises = [math.inf if made is None else _noise(options, made) for made in forced]
        choice = forced[noises.index(min(noises))]
    return None if choice is None else _assignment(layers, own, options, choice)


def front(layers: Sequence[Sensitivity], float_bytes: int) -> list[Assignment]:
    """Precisions from the smallest file to the least noise.

    The limit of the noise is halved from one to the next, and each is the cheapest within its limit; the last one keeps all but the
    quietest layer in float. All layers in 8 bits are not among them.
    """
    own = _weighted(layers)
    options = [options_of(layer, float_bytes) for layer in own]
    noises = [option.noise for each in options for option in each if option.noise > 0]
    limit, quietest = sum(max(option.noise for option in each) for each in options), min(noises, default=0.0)
    found: list[Assignment] = []
    # The first limit allows everything: without narrower weights that is all layers in 8.
    while limit > quietest > 0:
        choice = least_cost(options, limit)
        made = _assignment(layers, own, options, choice or [0] * len(own))
        if made != Assignment() and made not in found:
            found.append(made)
        limit /= 2
    most = [[option.bits for option in each] for each in options]
    last = _assignment(layers, own, options, [bits.index(max(bits)) for bits in most])
    return found if last in found or last == Assignment() else [*found, last]


def _noise(options: Sequence[Sequence[Option]], choice: Sequence[int]) -> float:
    return sum(each[index].noise for each, index in zip(options, choice, strict=True))


def _weighted(layers: Sequence[Sensitivity]) -> list[Sensitivity]:
    return [layer for layer in layers if layer.weights]


def _assignment(
    layers: Sequence[Sensitivity], own: Sequence[Sensitivity], options: Sequence[Sequence[Option]], choice: Sequence[int]
) -> Assignment:
    """What was chosen; the quietest layer of all goes back to integers where none but tables would be left in them."""
    bits = [each[index].bits for each, index in zip(options, choice, strict=True)]
    kept, *narrow = ([layer for layer, has in zip(own, bits, strict=True) if has == wanted] for wanted in (FLOAT, 4, 2))
    if len(kept) == sum(layer.kind != TABLE for layer in layers):
        kept.remove(min(kept, key=lambda layer: layer.noise))
    return Assignment(*(tuple(layer.node for layer in chosen) for chosen in (kept, *narrow)))


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
    limit += abs(limit) * _SLACK
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
