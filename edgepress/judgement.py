"""From a report's facts to its verdict: gates against the accepted release, waivers, the worst gate. A run and `gate` share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from edgepress.baseline.evidence import baseline_evidence
from edgepress.baseline.file import Baseline
from edgepress.config_waivers import Waiver
from edgepress.report.present import target_verdict
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Verdict
from edgepress.validators.gate_text import fitted_step
from edgepress.validators.gates import Gate, overall
from edgepress.validators.multiplicity import Asked, judge_together
from edgepress.waivers import apply_waivers

Json = dict[str, Any]

_PREFIX = "baseline."


def against_baseline(report: Json, baseline: Baseline | None, file: str) -> Json:
    """The report with its gates against the accepted release judged anew.

    Args:
        report: with `against_baseline` in its targets.
        baseline: None where there is none yet: its gates are undecided then.
        file: its path, for messages and the report.
    """
    asked = [_asked(report, target, baseline, file) for target in report["targets"]]
    verdicts = judge_together(asked, adjust=report.get("multiplicity") != "each")
    targets = [_with_verdicts(target, found, baseline) for target, found in zip(report["targets"], verdicts, strict=True)]
    return {**report, "targets": targets, "baseline": {"file": file}}


def conclude(report: Json, waivers: Iterable[Waiver], today: date) -> Json:
    """The report with these waivers, and no others, and the verdict that its gates then amount to."""
    waivers = tuple(waivers)
    targets = [_advised(apply_waivers(target, waivers, today)) for target in report["targets"]]
    verdict = overall([target_verdict(target) for target in targets])
    return {**report, "verdict": verdict, "targets": targets, "waivers": [waiver.to_json() for waiver in waivers]}


def _advised(target: Json) -> Json:
    """A target whose next steps fit it."""
    kernels = target["kernels"] or {}
    in_float = bool(target.get("float_ops")) or not kernels or any(kernels[kind] for kind in ("fp16", "fp32", "unknown"))
    steps = (
        {"next_step": fitted_step(gate["next_step"], target["name"], in_float)} if gate["next_step"] else {} for gate in target["gates"]
    )
    return {**target, "gates": [{**gate, **step} for gate, step in zip(target["gates"], steps, strict=True)]}


def compares(report: Mapping[str, Any]) -> bool:
    """Does any gate of the run compare with the accepted release?"""
    return any((target.get("against_baseline") or {}).get("limits") for target in report["targets"])


def _asked(report: Json, target: Json, baseline: Baseline | None, file: str) -> Asked:
    against = target.get("against_baseline")
    if not against or target["status"] != "validated":
        return Asked((), ())
    try:
        limits = [Gate(**limit) for limit in against["limits"]]
    except (TypeError, KeyError) as error:
        raise EdgepressError(f"the limits of {target['name']!r} in report.json cannot be read", str(error), "Run again.") from error
    confidence = next((limit.confidence for limit in limits if limit.name == f"{_PREFIX}accuracy_drop"), 0.95)
    return Asked(limits, list(baseline_evidence(report, target, baseline, file, confidence)), target.get("unmeasured") or ())


def _with_verdicts(target: Json, verdicts: Sequence[Verdict], baseline: Baseline | None) -> Json:
    against = target.get("against_baseline")
    if not against or target["status"] != "validated":
        return target
    own = [gate for gate in target["gates"] if not gate["name"].startswith(_PREFIX)]
    entry = baseline.entries.get(target["name"]) if baseline else None
    accepted = {key: getattr(entry, key) for key in ("accepted", "accepted_by", "reason", "artifact")} if entry else None
    gates = [*own, *(verdict.to_json() for verdict in verdicts)]
    return {**target, "gates": gates, "against_baseline": {**against, "entry": accepted}}
