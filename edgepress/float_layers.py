"""Which layers of one target stay float: as few as a limit of the drop allows.

Every set that is considered is exported, run in its runtime and scored on the training samples that choose between schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edgepress.results import Candidate, Prepared, TargetRun
from edgepress.step import Result
from edgepress.target_steps import NAMED, TargetSteps
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Scheme

#: Makes, runs and scores one scheme.
Attempt = Callable[[Scheme], Candidate]
#: Is a candidate good enough?
Holds = Callable[[Candidate], bool]


class FloatLayers:
    """The search for one target.

    Args:
        steps: makes the steps.
        run: the target; what is tried is added to it.
        prepared: the float model, calibrated.
        attempt: exports, runs and scores a scheme on the selection samples.
    """

    def __init__(self, steps: TargetSteps, run: TargetRun, prepared: Prepared, attempt: Attempt) -> None:
        self._steps, self._run, self._prepared, self._attempt = steps, run, prepared, attempt

    def fallback(self) -> Candidate | None:
        """Take layers back to float until the best of the schemes tried holds.

        Returns:
            The candidate with the fewest layers in float that holds, else the best there is; None where no scheme could be exported.
            `run.fallback` says which layers those are, and whether the goal was met.
        """
        base = best_of(self._run.tried)
        if base is None:
            return None
        layers = self._steps.sensitivity(self._run.plan, self._prepared, base.scheme)
        if layers.pending:
            return base
        order = list(layers.value["order"])
        sets = [replace(base.scheme, float_layers=tuple(order[:count])) for count in range(1, len(order))]
        tried = self._search(base, layers, sets, lambda candidate: candidate.held)
        holding = [candidate for candidate in tried if candidate.held]
        best = min(holding, key=kept_of) if holding else best_of([base, *tried]) or base
        self._run.fallback = {
            "scheme": base.scheme.label,
            "layers": [titles_of(layers)[node] for node in order if node in best.scheme.float_layers],
            "met": best.held,
            "drop": best.drop,
            "tried": [{"layers": kept_of(candidate), "drop": candidate.drop} for candidate in (base, *tried) if candidate.export],
        }
        return best

    def _search(self, base: Candidate, layers: Result, schemes: Sequence[Scheme], holds: Holds) -> list[Candidate]:
        """Try schemes, each with more bits than the one before, until the first that holds is known; returns what was tried."""
        made: list[Candidate] = []

        def trial(count: int) -> bool:
            made.append(self._tried(base, layers, schemes[count - 1]))
            return holds(made[-1])

        shortest(len(schemes), trial)
        return made

    def _tried(self, base: Candidate, layers: Result, scheme: Scheme) -> Candidate:
        try:
            candidate = self._attempt(scheme)
        except EdgepressError as error:
            candidate = Candidate(scheme, None, None, False, str(error))
        chosen = (("in float", scheme.float_layers), ("in 4 bits", scheme.int4_layers), ("in 2 bits", scheme.int2_layers))
        said = "".join(f"; {what}: {_shown(layers, nodes)}" for what, nodes in chosen if nodes)
        candidate = replace(candidate, why=f"{candidate.why}{said}")
        self._run.tried.append(candidate)
        return candidate


def _shown(layers: Result, nodes: Sequence[str]) -> str:
    """The first of some layers, those that float serves best before the others."""
    titles, rank = titles_of(layers), {node: place for place, node in enumerate(layers.value["order"])}
    ordered = sorted(nodes, key=lambda node: rank.get(node, len(rank)))
    return ", ".join([*(titles[node] for node in ordered[:NAMED]), *(["…"] if len(nodes) > NAMED else [])])


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """Of those that have a file the one that lost least; with less in float where they tie."""
    made = [candidate for candidate in candidates if candidate.export is not None]
    return min(made, key=lambda candidate: (candidate.drop, kept_of(candidate)), default=None)


def kept_of(candidate: Candidate) -> int:
    """How many layers it keeps in float."""
    return len(candidate.scheme.float_layers)


def titles_of(layers: Result) -> dict[str, str]:
    """Node -> its module in the user's model, with the node where one module makes several."""
    names = [layer["layer"] for layer in layers.value["layers"]]
    return {
        layer["node"]: layer["layer"] if names.count(layer["layer"]) == 1 else f"{layer['layer']} ({layer['node']})"
        for layer in layers.value["layers"]
    }


def shortest(longest: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest length that holds, for a goal that longer prefixes meet where shorter ones do.

    Lengths double until one holds, then the gap is halved: few trials where few layers are to blame. Where the goal is not monotone,
    the answer holds all the same, and the length before it that was tried does not.

    Args:
        longest: the largest length that may be tried.
        holds: called at most once per length, at most 2 log2(`longest`) + 2 times.

    Returns:
        The length, None where even `longest` does not hold.
    """
    below, step = 0, 1
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
