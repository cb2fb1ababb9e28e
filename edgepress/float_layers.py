"""Which layers of one target stay float: as few as a limit of the drop allows, or as many as a budget does.

Every set that is considered is exported, run in its runtime and scored on the training samples that choose between schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgepress.config_steps import MixedBudget
from edgepress.results import Candidate, Prepared, TargetRun, loaded_bytes
from edgepress.step import Result
from edgepress.target_steps import NAMED, TargetSteps
from edgepress.targets.errors import EdgepressError, QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.validators.runtimes import RUNTIMES

#: How often a budget of bytes is tightened by what the exported file has too much.
_CORRECTIONS = 4
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
        base = _best(self._run.tried)
        if base is None:
            return None
        layers = self._steps.sensitivity(self._run.plan, self._prepared, base.scheme)
        if layers.pending:
            return base
        order = list(layers.value["order"])
        sets = [order[:count] for count in range(1, len(order))]
        tried = self._search(base, layers, sets, lambda candidate: candidate.held)
        holding = [candidate for candidate in tried if candidate.held]
        best = min(holding, key=_kept) if holding else _best([base, *tried]) or base
        self._run.fallback = {
            "scheme": base.scheme.label,
            "layers": [_titles(layers)[node] for node in order if node in best.scheme.float_layers],
            "met": best.held,
            "drop": best.drop,
            "tried": [{"layers": _kept(candidate), "drop": candidate.drop} for candidate in (base, *tried) if candidate.export],
        }
        return best

    def mixed(self, budget: MixedBudget) -> Candidate:
        """Divide the layers of the best scheme tried between integers and float.

        Raises:
            QuantizationError: no division reaches the budget; the nearest is named.
        """
        base = _best(self._run.tried)
        if base is None or base.export is None:
            raise EdgepressError(f"target {self._run.plan.target.name!r} could not be exported in integers")
        layers = self._steps.sensitivity(self._run.plan, self._prepared, base.scheme)
        if layers.pending:
            return base
        if budget.size is not None:
            best = self._within_size(base, layers, budget.size)
        elif budget.latency is not None:
            best = self._within_latency(base, layers, budget.latency)
        else:
            best = self._within_drop(base, layers, budget.accuracy_drop or 0.0)
        self._run.mixed = {"budget": budget.model_dump(exclude_none=True), "drop": best.drop, "layers": _assignment(layers, best)}
        return best

    def _within_size(self, base: Candidate, layers: Result, ratio: float) -> Candidate:
        """The least noise in a file of at most `ratio` of the float original's."""
        plan = self._run.plan
        original = self._steps.export(plan, self._prepared, Scheme("fp32", "float"), baseline=True)
        if original.pending or base.export is None or base.export.pending:
            return base
        whole = _bytes(original)
        smallest, limit = _bytes(base.export), ratio * whole
        if smallest > limit:
            raise QuantizationError(
                f"target {plan.target.name!r} cannot be as small as {ratio:.3g}x",
                f"with every layer in integers its file has {smallest:,} bytes, {smallest / whole:.3g}x of the float original's {whole:,}",
                f"The nearest budget is {{size: {smallest / whole + 0.0005:.3f}x}}; pruning makes it smaller.",
            )
        room = limit - smallest
        for _ in range(_CORRECTIONS):
            nodes = self._sets(layers, room)[0]
            if not nodes:
                break
            candidate = self._tried(base, layers, nodes)
            over = _bytes(candidate.export) - limit if candidate.export else limit
            if over <= 0:
                return candidate
            room -= over
        return base

    def _within_latency(self, base: Candidate, layers: Result, ratio: float) -> Candidate:
        """The least noise in at most `ratio` of the float original's time, measured in the target's runtime."""
        name = self._run.plan.target.name
        why = RUNTIMES.get(self._run.plan.target.runtime)().timing_unavailable()
        if why is not None:
            raise QuantizationError(f"target {name!r} cannot follow a budget of latency", why, "Give it e.g. {size: 0.5x}.")
        fastest = self._time(base)
        if fastest > ratio:
            raise QuantizationError(
                f"target {name!r} cannot take as little as {ratio:.3g}x of the float original's time",
                f"with every layer in integers it takes {fastest:.3g}x",
                f"The nearest budget is {{latency: {fastest + 0.005:.2f}x}}; pruning makes it faster.",
            )
        order, within = list(layers.value["order"]), {0: base}

        def over(count: int) -> bool:
            candidate = self._tried(base, layers, order[:count])
            if candidate.export is None or self._time(candidate) > ratio:
                return True
            within[count] = candidate
            return False

        shortest(len(order) - 1, over)
        return within[max(within)]

    def _time(self, candidate: Candidate) -> float:
        """Over the float original's in the same runtime, in interleaved pairs."""
        assert candidate.export is not None, "only files that were made are timed"
        plan, scheme = self._run.plan, candidate.scheme
        original = self._steps.export(plan, self._prepared, Scheme("fp32", "float"), baseline=True)
        window = self._steps.paired(f"latency {plan.target.name} {scheme.label}", plan, self._prepared, (candidate.export, original))
        return 0.0 if window.pending else float(window.value["latency_ratio"]["value"])

    def _within_drop(self, base: Candidate, layers: Result, limit: float) -> Candidate:
        """The smallest file that loses at most `limit` on the selection samples."""

        def holds(candidate: Candidate) -> bool:
            return candidate.export is not None and candidate.drop <= limit

        if holds(base):
            return base
        tried = self._search(base, layers, self._sets(layers, None), holds)
        holding = [candidate for candidate in tried if holds(candidate)]
        if holding:
            return min(holding, key=lambda candidate: _bytes(candidate.export))
        best = _best([base, *tried]) or base
        raise QuantizationError(
            f"target {self._run.plan.target.name!r} cannot hold a drop of {limit:g} with any layer in integers",
            f"the nearest is {best.drop:.2f}, with {_kept(best)} of {len(layers.value['layers'])} layers in float",
            f"Give it e.g. {{accuracy_drop: {best.drop + 0.005:.2f}pp}}, or precision fp16.",
        )

    def _sets(self, layers: Result, room: float | None) -> list[list[str]]:
        """Layers to keep in float; none while it is only planned."""
        made = self._steps.assigned(self._run.plan, layers, room)
        return [[]] if made.pending else [list(nodes) for nodes in made.value["sets"]]

    def _search(self, base: Candidate, layers: Result, sets: Sequence[Sequence[str]], holds: Holds) -> list[Candidate]:
        """Try sets, each with more float than the one before, until the first that holds is known; returns what was tried."""
        made: list[Candidate] = []

        def trial(count: int) -> bool:
            made.append(self._tried(base, layers, sets[count - 1]))
            return holds(made[-1])

        shortest(len(sets), trial)
        return made

    def _tried(self, base: Candidate, layers: Result, nodes: Sequence[str]) -> Candidate:
        scheme = replace(base.scheme, float_layers=tuple(nodes))
        try:
            candidate = self._attempt(scheme)
        except EdgepressError as error:
            candidate = Candidate(scheme, None, None, False, str(error))
        names = [_titles(layers)[node] for node in nodes]
        shown = ", ".join([*names[:NAMED], *(["…"] if len(names) > NAMED else [])])
        candidate = replace(candidate, why=f"{candidate.why}; in float: {shown}")
        self._run.tried.append(candidate)
        return candidate


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Of those that have a file the one that lost least; with less in float where they tie."""
    made = [candidate for candidate in candidates if candidate.export is not None]
    return min(made, key=lambda candidate: (candidate.drop, _kept(candidate)), default=None)


def _kept(candidate: Candidate) -> int:
    return len(candidate.scheme.float_layers)


def _bytes(export: Result | None) -> int:
    assert export is not None, "only files that were made are weighed"
    return 0 if export.pending else loaded_bytes(export)


def _titles(layers: Result) -> dict[str, str]:
    """Node -> its module in the user's model, with the node where one module makes several."""
    names = [layer["layer"] for layer in layers.value["layers"]]
    return {
        layer["node"]: layer["layer"] if names.count(layer["layer"]) == 1 else f"{layer['layer']} ({layer['node']})"
        for layer in layers.value["layers"]
    }


def _assignment(layers: Result, chosen: Candidate) -> list[dict[str, Any]]:
    """For every layer its bits and what its integers cost."""
    titles = _titles(layers)
    return [
        {
            "layer": titles[layer["node"]],
            "bits": 32 if layer["node"] in chosen.scheme.float_layers else 8,
            "sensitivity": layer["noise"],
            "macs_share": layer["macs_share"],
            "weights": layer["weights"],
        }
        for layer in layers.value["layers"]
    ]


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
