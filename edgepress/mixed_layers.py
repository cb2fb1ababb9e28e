"""A precision for every layer of one target within a budget: float, 8 bits, or 4 and 2 where the target can store them.

What is chosen is exported, run in its runtime and scored on the training samples that choose between schemes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgepress.config_steps import MixedBudget
from edgepress.float_layers import FloatLayers, best_of, kept_of, titles_of
from edgepress.latency_budget import Kept, LatencyBudget
from edgepress.quantities import Quantity
from edgepress.results import Candidate, loaded_bytes
from edgepress.step import Result
from edgepress.targets.errors import EdgepressError, QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.validators.runtimes import RUNTIMES

#: How often a budget of bytes is tightened by what the exported file has too much, each time by twice as many times that: other layers
#: than before may take the room, and what their nodes take is not in the sums.
_CORRECTIONS = 7


class MixedLayers(FloatLayers):
    """The search for one target; see `FloatLayers`."""

    def mixed(self, budget: MixedBudget, narrow: Sequence[int] = ()) -> Candidate:
        """Divide the layers of one of the schemes tried between integers and float.

        A budget of accuracy divides the one that lost least, others the first that holds: what a drop is less by chance is not worth a
        scheme with less in integers, which is slower.

        Args:
            budget: what they may spend.
            narrow: bits below 8 that weights and tables may have too. A budget of latency leaves them at 8: all take the same time.

        Raises:
            QuantizationError: no division reaches the budget; the nearest is named.
            EdgepressError: what reaches it could not be made, with the reason.
        """
        fastest = next((candidate for candidate in self._run.tried if candidate.held and candidate.export is not None), None)
        base = fastest if fastest and budget.accuracy_drop is None else best_of(self._run.tried)
        if base is None or base.export is None:
            raise EdgepressError(f"target {self._run.plan.target.name!r} could not be exported in integers")
        layers = self._steps.sensitivity(self._run.plan, self._prepared, base.scheme, narrow if budget.latency is None else ())
        if layers.pending:
            return base
        costs: Mapping[str, float] = {}
        if budget.size is not None:
            best = self._within_size(base, layers, budget.size)
        elif budget.latency is not None:
            best, costs = self._within_latency(base, layers, budget.latency)
        else:
            assert budget.accuracy_drop is not None  # one of the three is given
            best = self._within_drop(base, layers, budget.accuracy_drop)
        if best.export is None:
            raise EdgepressError(f"target {self._run.plan.target.name!r}: no file could be made of {best.scheme.label}", best.why)
        self._run.mixed = {"budget": _numbers(budget), "drop": best.drop, "layers": _assignment(layers, best, costs)}
        return best

    def _within_size(self, base: Candidate, layers: Result, ratio: float) -> Candidate:
        """The least noise in a file of at most `ratio` of the float original's."""
        plan = self._run.plan
        original = self._steps.export(plan, self._prepared, Scheme("fp32", "float"), baseline=True)
        if original.pending or base.export is None or base.export.pending:
            return base
        limit = ratio * _bytes(original)
        room = limit - _bytes(base.export)
        for correction in range(_CORRECTIONS):
            found = self._assigned(base, layers, room)
            if not found or not _named(found[0]):
                break
            over = self._weighed(base, layers, found[0]) - limit
            if over <= 0:
                candidate = self._tried(base, layers, found[0])
                over = _bytes(candidate.export) - limit if candidate.export else limit
                if over <= 0:
                    return candidate
            room -= over * 2**correction
        return self._smallest(base, layers, ratio, _bytes(original))

    def _smallest(self, base: Candidate, layers: Result, ratio: float, whole: int) -> Candidate:
        """All layers in 8 bits where that is within `ratio` of the original's bytes, else in the fewest where those are fewer bytes.

        Raises:
            QuantizationError: neither is.
        """
        name, size, what = self._run.plan.target.name, _bytes(base.export), "in integers"
        if size <= ratio * whole:
            return base
        if _narrows(layers):
            scheme = self._assigned(base, layers, None)[0]  # the cheapest
            size, what = min((size, what), (self._weighed(base, layers, scheme), "in the fewest bits that it can have"))
            if size <= ratio * whole:
                return self._tried(base, layers, scheme)
        raise QuantizationError(
            f"target {name!r} cannot be as small as {ratio:.3g}x",
            f"with every layer {what} its file has {size:,} bytes, {size / whole:.3g}x of the float original's {whole:,}",
            f"The nearest budget is {{size: {math.ceil(size / whole * 1000) / 1000:.3f}x}}; pruning makes it smaller.",
        )

    def _weighed(self, base: Candidate, layers: Result, scheme: Scheme) -> int:
        """Bytes of a scheme's file, which no refinement changes; more than any budget where it cannot be exported, which is noted."""
        try:
            return _bytes(self._steps.export(self._run.plan, self._prepared, scheme))
        except EdgepressError:
            self._tried(base, layers, scheme)
            return sys.maxsize

    def _within_latency(self, base: Candidate, layers: Result, ratio: float) -> tuple[Candidate, Mapping[str, float]]:
        """The least noise in at most `ratio` of the float original's time, measured in its runtime; and what float costs each layer."""
        name = self._run.plan.target.name
        why = RUNTIMES.get(self._run.plan.target.runtime)().timing_unavailable()
        if why is not None:
            raise QuantizationError(f"target {name!r} cannot follow a budget of latency", why, "Give it e.g. {size: 0.5x}.")

        original = self._steps.export(self._run.plan, self._prepared, Scheme("fp32", "float"), baseline=True)

        def time(kept: Kept) -> float:
            try:
                return self._time(replace(base.scheme, float_layers=kept), original)
            except EdgepressError:
                return math.inf

        def assign(costs: Mapping[str, float], room: float) -> Kept | None:
            made = self._steps.within_time(self._run.plan, layers, costs, room)
            return tuple(made.value["assignments"][0]["float_layers"]) if not made.pending and made.value["assignments"] else None

        search = LatencyBudget(layers.value["layers"], time, assign)
        kept = search.search(ratio)
        if kept is not None:
            return (self._tried(base, layers, replace(base.scheme, float_layers=kept)) if kept else base), search.costs
        fewest, nearest = min(((len(kept), time) for kept, time in search.times.items()), key=lambda item: item[1])
        raise QuantizationError(
            f"target {name!r} cannot take as little as {ratio:.3g}x of the float original's time",
            f"with every layer in integers it takes {search.times[()]:.3g}x"
            + (f", at best {nearest:.3g}x with {fewest} of {len(search.costs)} in float" if fewest else ""),
            f"The nearest budget is {{latency: {nearest + 0.005:.2f}x}}; pruning makes it faster.",
        )

    def _time(self, scheme: Scheme, original: Result) -> float:
        """Of its file over the float original's in the same runtime, in interleaved pairs."""
        plan = self._run.plan
        made = self._steps.export(plan, self._prepared, scheme)
        window = self._steps.paired(f"latency {plan.target.name} {scheme.label}", plan, self._prepared, (made, original))
        return 0.0 if window.pending else float(window.value["latency_ratio"]["value"])

    def _within_drop(self, base: Candidate, layers: Result, allowed: Quantity) -> Candidate:
        """The smallest file that loses at most `allowed` on the selection samples."""
        limit = allowed.value

        def holds(candidate: Candidate) -> bool:
            return candidate.export is not None and candidate.drop <= limit

        if holds(base) and not _narrows(layers):
            return base
        tried = [base, *self._search(base, layers, self._assigned(base, layers, None), holds)]
        holding = [candidate for candidate in tried if holds(candidate)]
        if holding:
            return min(holding, key=lambda candidate: _bytes(candidate.export))
        best = best_of(tried) or base
        raise QuantizationError(
            f"target {self._run.plan.target.name!r} cannot hold a drop of {limit:g} with any layer in integers",
            f"the nearest is {best.drop:.2f}, with {kept_of(best)} of {len(layers.value['order'])} layers in float",
            f"Give it e.g. {{accuracy_drop: {best.drop + 0.005:.2f}{allowed.unit}}}, or precision fp16.",
        )

    def _assigned(self, base: Candidate, layers: Result, room: float | None) -> list[Scheme]:
        """Schemes with a precision for every layer; none while it is only planned."""
        made = self._steps.assigned(self._run.plan, layers, room)
        return [] if made.pending else [replace(base.scheme, **found) for found in made.value["assignments"]]


def _numbers(budget: MixedBudget) -> dict[str, float]:
    given = {name: getattr(budget, name) for name in type(budget).model_fields if getattr(budget, name) is not None}
    return {name: value.value if isinstance(value, Quantity) else value for name, value in given.items()}


def _narrows(layers: Result) -> bool:
    """Was any layer measured with fewer than 8 bits?"""
    return any(layer[name] is not None for layer in layers.value["layers"] for name in ("int4_noise", "int2_noise"))


def _named(scheme: Scheme) -> bool:
    """Has some layer another precision than 8 bits?"""
    return bool(scheme.float_layers or scheme.narrow_layers)


def _bytes(export: Result | None) -> int:
    assert export is not None, "only files that were made are weighed"
    return 0 if export.pending else loaded_bytes(export)


def _assignment(layers: Result, chosen: Candidate, costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """For every layer its bits, what its integers cost, and where there are `costs` what float takes longer, over the original's time."""
    bits = dict.fromkeys(chosen.scheme.float_layers, 32) | chosen.scheme.narrow_layers
    titles = titles_of(layers)
    return [
        {
            "layer": titles[layer["node"]],
            "bits": bits.get(layer["node"], 8),
            "sensitivity": layer["noise"],
            "int4_sensitivity": layer["int4_noise"],
            "int2_sensitivity": layer["int2_noise"],
            "macs_share": layer["macs_share"],
            "weights": layer["weights"],
            "float_latency": costs.get(layer["node"]),
        }
        for layer in layers.value["layers"]
    ]
