"""Which layers stay in float when the integers of all of them cost too much: a ranking, and the shortest prefix of it that holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgepress.compress.quantize.sensitivity import Sensitivity


def ranked(layers: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Layers whose float arithmetic buys the most for what it costs first.

    The cost is the layer's share of multiply-accumulates and, for every layer alike, one share of their number: what leaving the
    integers and coming back costs, whatever is computed between.
    """
    each = 1 / max(len(layers), 1)
    return sorted(layers, key=lambda layer: (-layer.noise / (layer.macs_share + each), layer.node))


def shortest(longest: int, holds: Callable[[int], bool], start: int = 1) -> int | None:
    """The smallest length that holds, for a goal that longer prefixes meet where shorter ones do.

    Lengths double until one holds, then the gap is halved: few trials where few layers are to blame. Where the goal is not monotone,
    the answer holds all the same, and the length before it that was tried does not.

    Args:
        longest: the largest length that may be tried.
        holds: called at most once per length, at most 2 log2(`longest`) + 2 times.
        start: the smallest length.

    Returns:
        The length, None where even `longest` does not hold.
    """
    below, step = start - 1, 1
    above = None
    while above is None:
        if below >= longest:
            return None
        length = min(below + step, longest)
        if holds(length):
            above = length
        else:
            below, step = length, step * 2
    while above - below > 1:
        middle = (above + below) // 2
        if holds(middle):
            above = middle
        else:
            below = middle
    return above
