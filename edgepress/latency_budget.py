"""What integers and float take for each kind of layer on a target, measured there, and the layers in float that a budget of time buys.

Layers alike (of one kind, with equally many weights and multiply-accumulates) are taken to cost the same, and change their precision
together once: all others in integers, or all others in float where integers alone take longer than the budget. The integer program of
`compress/quantize/mixed.py` then divides the layers, and what it chose is timed; the time that is left, or over, corrects the next room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Nodes in float, sorted.
Kept = tuple[str, ...]

#: How often the program is solved again after what it chose was timed; each time by twice as much where it took too long.
_CORRECTIONS = 7
#: The cost of a layer whose other precision has no file: more than any budget, and finite for the solver.
_NEVER = 1e3


class LatencyBudget:
    """The search for one target. Times are over the float original's in the same runtime.

    Args:
        layers: the fields of `Sensitivity` of every layer that can stay float, in the order of the graph.
        time: of the file with these nodes in float; infinite where there is none.
        assign: costs and room -> the nodes in float with the least noise within it, None where nothing is (`mixed.within_time`).
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, Any]],
        time: Callable[[Kept], float],
        assign: Callable[[Mapping[str, float], float], Kept | None],
    ) -> None:
        self._noise = {str(layer["node"]): float(layer["noise"]) for layer in layers}
        self._groups = alike(layers)
        self._measure, self._assign = time, assign
        self.times: dict[Kept, float] = {}
        self.costs: dict[str, float] = {}

    def search(self, ratio: float) -> Kept | None:
        """The nodes in float with the least noise whose file takes at most `ratio`; None where no file that was timed does.

        Afterwards `times` holds every file that was timed, and `costs` what float takes longer than integers at each node.
        """
        integers = self._time(())
        total = self._costs(integers) if integers <= ratio else self._costs_among_floats()
        room, least = ratio - total, sum(min(cost, 0.0) for cost in self.costs.values())
        chosen: set[Kept] = set()
        for correction in range(_CORRECTIONS):
            kept = self._assign(self.costs, max(room, least))
            if kept is None or kept in chosen:
                break
            chosen.add(kept)
            over = self._time(kept) - ratio
            room -= over * 2**correction if over > 0 else over
        within = [kept for kept, time in self.times.items() if time <= ratio]
        return min(within, key=lambda kept: sum(noise for node, noise in self._noise.items() if node not in kept), default=None)

    def _time(self, nodes: Iterable[str]) -> float:
        kept = tuple(sorted(nodes))
        if kept not in self.times:
            self.times[kept] = self._measure(kept)
        return self.times[kept]

    def _costs(self, integers: float) -> float:
        """With one group after the other in float; the time of all in integers."""
        for group in self._groups:
            kept = [node for node in group if len(group) < len(self._noise) or node != self._quietest()]
            self._spread(group, (self._time(kept) - integers) / max(len(kept), 1))
        return integers

    def _costs_among_floats(self) -> float:
        """With one group after the other in integers; what all in integers would take by that."""
        for group in self._groups:
            floats = [node for node in self._noise if node not in group]
            self._spread(group, (1 - self._time(floats)) / len(group))
        return 1 - sum(self.costs.values())

    def _spread(self, group: Sequence[str], cost: float) -> None:
        self.costs |= dict.fromkeys(group, cost if math.isfinite(cost) else _NEVER)

    def _quietest(self) -> str:
        return min(self._noise, key=self._noise.__getitem__)


def alike(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The nodes of layers that are taken to cost the same, group by group."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for layer in layers:
        groups.setdefault((layer["kind"], layer["weights"], layer["channels"], layer["macs_share"]), []).append(layer["node"])
    return list(groups.values())
