"""`method: best`: everything that can quantize for one target, compared, and the winner.

The rule, from the selection share and from latencies on this machine alone:

1. Accurate enough is a candidate whose drop on the selection share is within the recipe's `max_drop`. Where the recipe gives none, or
   nothing is within it: one that loses to the most accurate candidate by no more than chance (the paired interval of their difference
   contains zero).
2. Among these the fastest ships. Each is timed in interleaved pairs with the float original; the fastest is then timed against every
   other that came within 5 % of it, and an interval of that ratio that contains 1 calls the two equally fast.
3. Of those equally fast the most accurate, then the smallest, then edgepress's own.
4. Where latency cannot be measured here, the share of multiply-accumulates in integers, in whole percent, stands for it: the largest
   ships, then by 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgepress.best_steps import BestSteps
from edgepress.exporters.native import native_quantizers
from edgepress.results import Candidate, Prepared, TargetRun
from edgepress.step import Result
from edgepress.targets.errors import EdgepressError, LimitError
from edgepress.targets.nouns import Scheme
from edgepress.validators.runtimes import RUNTIMES

#: Scores an export of a scheme on the selection share; without an export it makes edgepress's own.
Attempt = Callable[[Scheme, Result | None], Candidate]

_SLOWER = (math.inf, math.inf)
_PREFERRED = "most accurate, then smallest"
_UNTIMED = f"most multiply-accumulates in integers, then {_PREFERRED}"
#: Ratios from two windows differ by more than their intervals say; those that lie nearer than this are taken again, side by side.
_NEAR = 1.05


def after_a_limit(error: LimitError, more: bool) -> LimitError:
    """The error of a scheme that is the last to be tried, though there may be more: of one converter they need about as much."""
    return LimitError(error.what, "schemes after it were not tried, as they need about as much", error.remedy) if more else error


class Best:
    """The search for one target.

    Args:
        steps: makes the steps.
        run: the target; what is tried is added to it.
        prepared: the float model, calibrated.
        attempt: exports (where no export is given), runs and scores a scheme on the selection share.
        max_drop: the drop there that the recipe allows; None where it says nothing.
    """

    def __init__(self, steps: BestSteps, run: TargetRun, prepared: Prepared, attempt: Attempt, max_drop: float | None) -> None:
        self._steps, self._run, self._prepared, self._attempt, self._max_drop = steps, run, prepared, attempt, max_drop
        self._untimed = RUNTIMES.get(run.plan.target.runtime)().timing_unavailable()

    def choose(self, schemes: Sequence[Scheme]) -> Candidate | None:
        """Make, compare and rank.

        Args:
            schemes: edgepress's own.

        Returns:
            The winner, None where nothing could be made. `run.tried` holds every candidate with its figures, the winner first;
            `run.reserves` those that may ship where it fails on the validation share, in their order.
        """
        made = [self._timed(candidate) for candidate in [*self._own(schemes), *self._natives()]]
        running = [candidate for candidate in made if candidate.export is not None]
        lost = [candidate for candidate in made if candidate.export is None]
        if not running:
            self._run.tried += lost
            return None
        if any(candidate.selection is None or candidate.selection.pending for candidate in running):
            self._steps.against_most_accurate(self._run.plan, self._prepared, running)
            return running[0]
        enough, others, rule = self._accurate(running)
        ranked, others = self._ranked(enough), sorted(others, key=lambda candidate: candidate.drop)
        self._run.tried += [*ranked, *others, *lost]
        self._run.reserves = [*ranked[1:], *others]
        self._run.best = {"rule": f"{rule}; {_UNTIMED if self._untimed else 'fastest'}", "candidates": len(made)}
        return ranked[0]

    def _own(self, schemes: Sequence[Scheme]) -> list[Candidate]:
        found = []
        for scheme in schemes:
            try:
                found.append(self._attempt(scheme, None))
            except LimitError as error:
                found.append(Candidate(scheme, None, None, False, str(after_a_limit(error, more=scheme is not schemes[-1]))))
                break
            except EdgepressError as error:
                found.append(Candidate(scheme, None, None, False, str(error)))
        return found

    def _natives(self) -> list[Candidate]:
        plan, found = self._run.plan, []
        for name, quantizer in native_quantizers(plan.target.runtime).items():
            support = quantizer.supports()
            for kind in quantizer.kinds:
                scheme = Scheme(plan.target.precision, kind, tool=name)
                if not support.usable:
                    found.append(Candidate(scheme, None, None, False, f"not installed: {support.install}"))
                    continue
                try:
                    found.append(self._attempt(scheme, self._steps.native(plan, self._prepared, quantizer, scheme)))
                except EdgepressError as error:
                    found.append(Candidate(scheme, None, None, False, str(error)))
        return found

    def _timed(self, candidate: Candidate) -> Candidate:
        """With its latency, where this machine can take it; one that cannot be timed there is lost."""
        if self._untimed is not None or candidate.export is None:
            return candidate
        try:
            return replace(candidate, latency=self._steps.window(self._run.plan, self._prepared, candidate))
        except EdgepressError as error:
            return Candidate(candidate.scheme, None, candidate.selection, False, str(error))

    def _accurate(self, running: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate], str]:
        """Rule 1: those accurate enough, the others with the reason, and the rule in words."""
        limit = self._max_drop
        if limit is not None and any(candidate.drop <= limit for candidate in running):
            judged = [replace(c, held=c.drop <= limit, why="" if c.drop <= limit else f"drop over {limit:g}") for c in running]
            rule = f"drop within {limit:g}"
        else:
            found = self._steps.against_most_accurate(self._run.plan, self._prepared, running).value
            judged = [_against_most_accurate(candidate, found[str(i)]) for i, candidate in enumerate(running)]
            rule = "as accurate as the most accurate within chance"
        return [c for c in judged if c.held], [c for c in judged if not c.held], rule

    def _ranked(self, enough: Sequence[Candidate]) -> list[Candidate]:
        """Rules 2 and 3: the winner, then the others in the order in which they would replace it."""
        if self._untimed is not None:
            first, *others = sorted(enough, key=lambda candidate: (-_integers(candidate), _preference(candidate)))
            return [replace(first, why=_UNTIMED), *(replace(c, why=_less_integer(c, first) or _behind(c, first)) for c in others)]
        ordered = sorted(enough, key=_latency)
        fastest, equal = ordered[0], [ordered[0]]
        for challenger in ordered[1:]:
            low, high = self._against(fastest, challenger)
            if high < 1:
                fastest, equal = challenger, [challenger]
            elif low <= 1:
                equal.append(challenger)
        first = min(equal, key=_preference)
        why = "fastest" if len(equal) == 1 else f"of {len(equal)} that are fastest within chance the {_PREFERRED}"
        others = [
            replace(c, why=f"as fast within chance, {_behind(c, first)}" if c in equal else "slower") for c in ordered if c is not first
        ]
        return [replace(first, why=why), *others]

    def _against(self, fastest: Candidate, challenger: Candidate) -> tuple[float, float]:
        """Interval of the challenger's latency over the fastest's, in one window of their own where the first ones leave it open."""
        if _latency(challenger) > _NEAR * _latency(fastest):
            return _SLOWER
        try:
            window = self._steps.duel(self._run.plan, self._prepared, challenger, fastest)
        except EdgepressError:  # it ran beside the float model: whatever this is, it is no reason to ship the challenger
            return _SLOWER
        low, high = window.value["latency_ratio"]["interval"]
        return low, high


def figures(candidate: Candidate, shipped: bool) -> dict[str, Any]:
    """What the report adds to a candidate that was compared."""
    score = candidate.selection.value if candidate.selection else {}
    ratio = candidate.latency.value["latency_ratio"] if candidate.latency and not candidate.latency.pending else None
    return {
        "tool": candidate.scheme.tool or "edgepress",
        "interval": score.get("interval"),
        "latency_ratio": ratio,
        "size_bytes": candidate.size_bytes,
        "shipped": shipped,
    }


def _against_most_accurate(candidate: Candidate, found: Mapping[str, Any]) -> Candidate:
    low, high = found["interval"]
    why = "" if low <= 0 else f"less accurate than the most accurate by {found['drop']:.2f} ({low:.2f} to {high:.2f})"
    return replace(candidate, held=low <= 0, why=why)


def _latency(candidate: Candidate) -> float:
    """Over the float original's."""
    assert candidate.latency is not None, "every candidate that is ranked by latency was timed"
    return float(candidate.latency.value["latency_ratio"]["value"])


def _integers(candidate: Candidate) -> int:
    """Percent of its multiply-accumulates in integers; 0 where nothing is known of them."""
    kernels = candidate.execution.value.get("kernels") if candidate.execution else None
    return round(100 * ((kernels or {}).get("int8_macs_share") or 0.0))


def _less_integer(candidate: Candidate, first: Candidate) -> str:
    """Why rule 4 puts it behind another one; empty where that is not why."""
    mine, other = _integers(candidate), _integers(first)
    return f"{mine} % of its multiply-accumulates in integers, {other} % there" if mine < other else ""


def _preference(candidate: Candidate) -> tuple[float, int, bool]:
    """Rule 3: smaller is better."""
    return candidate.drop, candidate.size_bytes or 0, bool(candidate.scheme.tool)


def _behind(candidate: Candidate, first: Candidate) -> str:
    """Why rule 3 puts it behind another one."""
    mine, other = _preference(candidate), _preference(first)
    return "less accurate" if mine[0] > other[0] else "larger" if mine[1] > other[1] else "equal to edgepress's own"
