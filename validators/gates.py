"""Evidence in, verdicts out. Not measured is not passed: every way of not having a number has its own verdict.

| evidence | verdict |
|---|---|
| none for the gate, `error` set, NaN, no value, wrong unit | error |
| `unmeasurable` set | undecided with a next step; accepted where the recipe accepts it by name |
| `incomparable` set | undecided with a next step |
| interval wholly inside the limit | pass |
| interval wholly outside | fail |
| interval across the limit, or none where there should be one | undecided, with what would decide |

A run is as bad as its worst gate: error (exit 2), fail (1), undecided (3), pass (0); accepted, which waived gates are too
(`edgepress.waivers`), counts as pass in the exit code and is never shown as one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgepress.targets.errors import ConfigError
from edgepress.targets.nouns import Evidence, Verdict
from edgepress.validators.gate_text import (
    Limit,
    across_step,
    failed_step,
    limit_text,
    observed_text,
    undeclared_step,
    unmeasurable_step,
)
from edgepress.validators.planning import samples_to_decide

PASS, FAIL, UNDECIDED, ERROR, ACCEPTED = "pass", "fail", "undecided", "error", "accepted"

EXIT_CODES: Mapping[str, int] = {PASS: 0, FAIL: 1, ERROR: 2, UNDECIDED: 3}

#: From worst to best; `accepted` and `pass` rank alike.
ORDER = (ERROR, FAIL, UNDECIDED)

#: Statuses of a target that make its run an error.
BROKEN = ("failed", "unsupported")


@dataclass(frozen=True)
class GateKind:
    """What a gate of one name means: the units its limit may carry, whether its evidence is an estimate with an interval, and
    whether it is a smallest allowed value instead of a largest.
    """

    units: tuple[str, ...]
    estimated: bool
    smallest: bool = False
    absolute_time: bool = False


#: `baseline.` gates compare with the last accepted release. An empty unit of an accuracy drop stands for that of a metric that
#: is no fraction.
KINDS: Mapping[str, GateKind] = {
    "accuracy_drop": GateKind(("pp", ""), estimated=True),
    "slice_drop": GateKind(("pp", ""), estimated=True),
    "latency_ratio": GateKind(("ratio",), estimated=True),
    "latency_p50": GateKind(("ms",), estimated=True, absolute_time=True),
    "latency_p90": GateKind(("ms",), estimated=True, absolute_time=True),
    "latency_p95": GateKind(("ms",), estimated=True, absolute_time=True),
    "latency_p99": GateKind(("ms",), estimated=True, absolute_time=True),
    "size": GateKind(("bytes",), estimated=False),
    "peak_memory": GateKind(("bytes",), estimated=False),
    "baseline.accuracy_drop": GateKind(("pp", ""), estimated=True),
    "baseline.latency_ratio": GateKind(("ratio",), estimated=True),
    "baseline.size": GateKind(("ratio",), estimated=False),
    "baseline.peak_memory": GateKind(("ratio",), estimated=False),
    "max_abs_error": GateKind(("",), estimated=False),
    "sqnr": GateKind(("dB",), estimated=False, smallest=True),
    "argmax_agreement": GateKind(("",), estimated=False, smallest=True),
}


@dataclass(frozen=True)
class Gate:
    """A limit of the recipe.

    Attributes:
        name: one of `KINDS`.
        limit: in `unit`; the largest allowed value, for `sqnr` and `argmax_agreement` the smallest.
        unit: `pp`, `ratio`, `ms`, `bytes`, `dB`, or empty for a number in the metric's own unit.
        confidence: of the two-sided interval that must lie inside the limit, in (0.5, 1).
        machine: fingerprint of the machine an absolute latency is judged on.

    Raises:
        ConfigError: unknown name, a unit the gate does not have, a limit that is no finite number, a confidence out of range.
    """

    name: str
    limit: float
    unit: str
    confidence: float = 0.95
    machine: str | None = None

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ConfigError(f"unknown gate {self.name!r}", "", f"Known: {', '.join(KINDS)}.")
        if self.unit not in KINDS[self.name].units:
            units = " or ".join(unit or "a bare number" for unit in KINDS[self.name].units)
            raise ConfigError(f"gate {self.name!r} has the unit {self.unit!r}", f"it takes {units}", "Write e.g. `max: 1.0pp`.")
        if not math.isfinite(self.limit):
            raise ConfigError(f"gate {self.name!r} has the limit {self.limit}", "it must be a finite number")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"gate {self.name!r} has the confidence {self.confidence}", "", "Use a number between 0.5 and 1, e.g. 0.95.")

    @property
    def kind(self) -> GateKind:
        """What its name means."""
        return KINDS[self.name]


def judge(
    gates: Sequence[Limit],
    evidences: Iterable[Evidence],
    accepted: Collection[str] = (),
    *,
    fingerprint: str | None = None,
) -> tuple[Verdict, ...]:
    """One verdict per gate, in the order of the gates.

    Args:
        gates: of one target: `Gate`, or anything with the same attributes.
        evidences: of that target; what no gate asks for is left alone.
        accepted: names from the target's `unmeasured: {latency: accept}`; `latency` covers every latency gate.
        fingerprint: of the machine the evidence was taken on; without it no absolute latency is judged.

    Raises:
        ConfigError: a gate that `Gate` refuses.
    """
    table = {evidence.name: evidence for evidence in evidences}
    return tuple(_judge(gate_of(gate), table.get(gate.name), accepted, fingerprint) for gate in gates)


def overall(verdicts: Iterable[Verdict | str], statuses: Iterable[str] = ()) -> str:
    """The verdict of a run: its worst gate, an error where a target failed or is unsupported, an error where nothing was judged.

    Args:
        verdicts: of every gate of every target.
        statuses: of every target (`validated`, `exported`, `failed`, `unsupported`).
    """
    found = [verdict if isinstance(verdict, str) else verdict.verdict for verdict in verdicts]
    if not found or any(status in BROKEN for status in statuses):
        return ERROR
    unknown = set(found) - {*ORDER, PASS, ACCEPTED}
    if unknown:
        return ERROR
    return next((verdict for verdict in ORDER if verdict in found), PASS)


def exit_code(verdict: str) -> int:
    """0 pass, 1 fail, 2 error (and anything that is no verdict), 3 undecided."""
    return EXIT_CODES.get(verdict, EXIT_CODES[ERROR])


def accepts(accepted: Collection[str], gate: str) -> bool:
    """Does the recipe accept that this gate was not measured, by its own name or by that of its family?"""
    own = gate.removeprefix("baseline.")
    return gate in accepted or own in accepted or own.split("_")[0] in accepted


def gate_of(limit: Limit) -> Gate:
    """Anything with a gate's attributes as a `Gate`; a confidence of None is 0.95."""
    if isinstance(limit, Gate):
        return limit
    confidence = 0.95 if limit.confidence is None else limit.confidence
    return Gate(limit.name, limit.limit, limit.unit, confidence, limit.machine)


def _judge(gate: Gate, evidence: Evidence | None, accepted: Collection[str], fingerprint: str | None) -> Verdict:
    if evidence is None:
        return _verdict(gate, "not measured", None, ERROR, f"Nothing measured {gate.name}: run again without cached results.")
    problem = _problem(gate, evidence)
    if problem:
        return _verdict(gate, problem, None, ERROR, "See log.txt for the step that took it; fix the cause and run again.")
    if evidence.incomparable is not None:
        return _verdict(gate, f"not comparable: {evidence.incomparable}", None, UNDECIDED, evidence.remedy)
    if evidence.unmeasurable is not None:
        if accepts(accepted, gate.name):
            return _verdict(gate, f"not measured (accepted): {evidence.unmeasurable}", None, ACCEPTED, None)
        return _verdict(gate, f"not measured: {evidence.unmeasurable}", None, UNDECIDED, unmeasurable_step(evidence))
    if gate.kind.absolute_time and (gate.machine is None or gate.machine != fingerprint):
        return _verdict(gate, observed_text(evidence), evidence.interval, UNDECIDED, undeclared_step(gate, fingerprint))
    return _compared(gate, evidence)


def _problem(gate: Gate, evidence: Evidence) -> str | None:
    """Why evidence is no evidence, or None."""
    if evidence.error is not None:
        return evidence.error or "the measurement failed without a message"
    if evidence.unmeasurable is not None or evidence.incomparable is not None:
        return None
    if evidence.value is None:
        return "no value was taken"
    if not math.isfinite(evidence.value):
        return f"{gate.name} is {evidence.value}"
    if evidence.interval is not None:
        low, high = evidence.interval
        if not (math.isfinite(low) and math.isfinite(high)) or not low <= evidence.value <= high:
            return f"{gate.name} is {evidence.value} with the interval [{low}, {high}]"
    return None if _same_unit(gate, evidence) else _unit_problem(gate, evidence)


def _same_unit(gate: Gate, evidence: Evidence) -> bool:
    """A bare limit of a drop is in the unit of the metric, whatever that is, as long as it is not a fraction's."""
    own = gate.name.endswith("_drop") and gate.unit == "" and evidence.unit != "pp"
    return own or evidence.unit == gate.unit


def _unit_problem(gate: Gate, evidence: Evidence) -> str:
    limit, measured = gate.unit or "the metric's own unit", evidence.unit or "plain numbers"
    remedy = "write e.g. `max: 1.0pp`" if evidence.unit == "pp" else f"write the limit as a bare number of {measured}"
    return f"the limit is in {limit}, but {gate.name} is measured in {measured}: {remedy}"


def _compared(gate: Gate, evidence: Evidence) -> Verdict:
    assert evidence.value is not None  # `_problem` saw to it
    sign = -1.0 if gate.kind.smallest else 1.0
    if not gate.kind.estimated:
        good = sign * evidence.value <= sign * gate.limit
        step = None if good else failed_step(gate.name)
        return _verdict(gate, observed_text(evidence), evidence.interval, PASS if good else FAIL, step)
    if evidence.interval is None:
        return _verdict(gate, observed_text(evidence), None, UNDECIDED, across_step(gate, evidence, None))
    low, high = evidence.interval
    if high < gate.limit:
        return _verdict(gate, observed_text(evidence), evidence.interval, PASS, None)
    if low > gate.limit:
        return _verdict(gate, observed_text(evidence), evidence.interval, FAIL, failed_step(gate.name))
    needed = evidence.needed or samples_to_decide(evidence.value, evidence.interval, evidence.samples, gate.limit, gate.confidence)
    return _verdict(gate, observed_text(evidence), evidence.interval, UNDECIDED, across_step(gate, evidence, needed))


def _verdict(gate: Gate, observed: str, interval: tuple[float, float] | None, verdict: str, step: str | None) -> Verdict:
    return Verdict(gate.name, limit_text(gate.limit, gate.unit, gate.kind.smallest), observed, interval, verdict, step)
