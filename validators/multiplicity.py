"""Many gates in one run: what that does to false alarms, and what is done about it.

A run passes when every gate passes. That is an intersection-union test: the chance that a bad model passes is no larger than that of its
worst gate, however many there are (Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24:295-300), so
passes need no adjustment. A run fails when any gate fails, and that chance does grow with every gate: at a true value equal to each limit
ten gates with two-sided 95 % intervals raise a false alarm in up to one of four runs. So a failure of an estimated gate stands only
where it survives Holm's step-down procedure over all estimated gates of the run (Holm 1979, "A sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6:65-70), which keeps that chance at the (1 - confidence) / 2 of one gate, whatever the
dependence between them. One that does not survive is undecided, with what would decide it. Exact facts (bytes) raise no false alarm and
take no part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from edgepress.targets.nouns import Evidence, Verdict
from edgepress.validators.gate_text import Limit, adjusted_step
from edgepress.validators.gates import FAIL, UNDECIDED, Gate, gate_of, judge
from edgepress.validators.intervals import z_score
from edgepress.validators.planning import samples_to_decide


@dataclass(frozen=True)
class Judged:
    """One gate of one target, judged by itself. `evidence` is None where nothing measured it."""

    gate: Gate
    evidence: Evidence | None
    verdict: Verdict


@dataclass(frozen=True)
class Asked:
    """The gates of one target, what was measured of it, and what may stay unmeasured (as for `judge`)."""

    gates: Sequence[Limit]
    evidence: Sequence[Evidence]
    accepted: Collection[str] = ()


def judge_together(targets: Sequence[Asked], *, adjust: bool = True, fingerprint: str | None = None) -> list[tuple[Verdict, ...]]:
    """One verdict per gate of every target; they are one family.

    Args:
        targets: everything that is judged at once.
        adjust: by `holm`; otherwise every gate stands by itself.
        fingerprint: of the machine the evidence was taken on.

    Raises:
        ConfigError: a gate that `Gate` refuses.
    """
    families = []
    for target in targets:
        gates, table = [gate_of(gate) for gate in target.gates], {evidence.name: evidence for evidence in target.evidence}
        verdicts = judge(gates, target.evidence, accepted=target.accepted, fingerprint=fingerprint)
        families.append([Judged(gate, table.get(gate.name), verdict) for gate, verdict in zip(gates, verdicts, strict=True)])
    every = [judged for family in families for judged in family]
    final = iter(holm(every) if adjust else [judged.verdict for judged in every])
    return [tuple(next(final) for _ in family) for family in families]


def holm(family: Sequence[Judged]) -> list[Verdict]:
    """The verdicts of all gates of a run, in their order; failures that may be chance among so many gates become undecided.

    The p-value of `value <= limit` is that of a normal estimate whose interval was measured: its standard error is the half width
    towards the limit over the normal quantile of the gate's confidence.
    """
    tests = [judged for judged in family if _is_test(judged)]
    failed = sorted((_risk(judged), place) for place, judged in enumerate(family) if judged.verdict.verdict == FAIL and _is_test(judged))
    verdicts, stands = [judged.verdict for judged in family], True
    for rank, (risk, place) in enumerate(failed):
        rest = len(tests) - rank
        stands = stands and risk * rest <= 1
        if not stands:
            verdicts[place] = _undecided(family[place], rest, len(tests))
    return verdicts


def _is_test(judged: Judged) -> bool:
    evidence = judged.evidence
    return judged.gate.kind.estimated and evidence is not None and evidence.value is not None and evidence.interval is not None


def _risk(judged: Judged) -> float:
    """Its p-value as a share of the error that the gate allows on one side; at most 1 for a failure."""
    assert judged.evidence is not None and judged.evidence.value is not None and judged.evidence.interval is not None
    half = judged.evidence.value - judged.evidence.interval[0]
    if half <= 0:
        return 0.0
    distance = z_score(judged.gate.confidence) * (judged.evidence.value - judged.gate.limit) / half
    return 2 * NormalDist().cdf(-distance) / (1 - judged.gate.confidence)


def _undecided(judged: Judged, rest: int, total: int) -> Verdict:
    gate, evidence = judged.gate, judged.evidence
    assert evidence is not None and evidence.value is not None and evidence.interval is not None
    confidence = 1 - (1 - gate.confidence) / rest
    wider = z_score(confidence) / z_score(gate.confidence)
    low, high = (evidence.value + wider * (bound - evidence.value) for bound in evidence.interval)
    needed = samples_to_decide(evidence.value, (low, high), evidence.samples, gate.limit, confidence)
    return replace(judged.verdict, verdict=UNDECIDED, next_step=adjusted_step(gate, evidence, needed, total))
