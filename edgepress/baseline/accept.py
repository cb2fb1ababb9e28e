"""A run becomes the accepted release: its facts replace those of its targets in the file, and nothing else in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from edgepress.baseline.evidence import baseline_evidence
from edgepress.baseline.file import NAME, Baseline, Entry, read_baseline, render_baseline
from edgepress.bundle.digest import digest, loaded_bytes
from edgepress.report.present import target_verdict
from edgepress.report.write import write_atomically
from edgepress.targets.errors import EdgepressError, IntegrityError
from edgepress.targets.nouns import Evidence
from edgepress.validators.gates import overall

#: Peak memory differs a little from process to process and has no interval: the ratchet lets this ratio through.
_MEMORY_SLACK = 1.02
ALLOWED: Final = ("undecided", "fail")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Acceptance:
    """Who accepts, why, and how strictly.

    Attributes:
        reason: kept in the file; not empty.
        by: who.
        at: when.
        allowed: a verdict besides pass that is accepted (`ALLOWED`).
        ratchet: refuse what is worse than the baseline so far; None leaves it to the recipe.
    """

    reason: str
    by: str
    at: datetime
    allowed: str | None = None
    ratchet: bool | None = None


def accept(run_dir: Path, report: Json, file: Path | None, acceptance: Acceptance) -> Path:
    """Write a run into a baseline; the file is replaced whole, in one rename, or stays as it is.

    Args:
        run_dir: the run's folder.
        report: its report, judged (`judgement.conclude`).
        file: the baseline; None for the one its recipe looks for.

    Returns:
        The file.

    Raises:
        EdgepressError: no reason, or a run that must not be accepted: its verdict, a fact that is missing, worse than before.
        ConfigError, IntegrityError: the file that is there cannot be read.
    """
    reason = " ".join(acceptance.reason.split())
    if not reason or not (reason + acceptance.by).isprintable():
        raise EdgepressError(f"--reason {acceptance.reason!r} says nothing a reviewer can read", "", "Say why this run is accepted.")
    _check_verdict(report, acceptance.allowed)
    place = file or Path((report.get("baseline") or {}).get("file") or NAME)
    if not place.parent.is_dir():
        raise EdgepressError(f"{str(place.parent)!r} is not a folder", "", "Name the baseline: --file PATH.")
    old = read_baseline(place, report["project"]) if place.exists() else Baseline(report["project"], {}, {})
    targets = report["targets"]
    run = Path(os.path.relpath(run_dir.resolve(), place.parent.resolve())).as_posix()
    said = {"reason": reason, "accepted_by": acceptance.by, "accepted": acceptance.at.isoformat(timespec="seconds"), "run": run}
    entries = {target["name"]: _entry(report, target, said) for target in targets}
    for target in targets:
        _check_artifact(run_dir, target)
        ratchet = (target.get("against_baseline") or {}).get("ratchet", False) if acceptance.ratchet is None else acceptance.ratchet
        if ratchet and target["name"] in old.entries:
            _check_ratchet(report, target, old, str(place))
    kept = {name: text for name, text in old.scores.items() if name not in entries}
    scores = {target["name"]: target["sample_scores"] for target in targets if target.get("sample_scores")}
    write_atomically(place, render_baseline(Baseline(report["project"], {**old.entries, **entries}, {**kept, **scores})))
    return place


def _check_verdict(report: Json, allowed: str | None) -> None:
    """A run is accepted when it passes. Gates that found nothing to compare with are no obstacle: this is how they get it."""
    if allowed is not None and allowed not in ALLOWED:
        raise EdgepressError(
            f"--allow-verdict {allowed!r} cannot be allowed", "", f"Use {' or '.join(ALLOWED)}: an error measured nothing."
        )
    gates = [gate for target in report["targets"] for gate in target["gates"]]
    judged = ["pass" if _nothing_to_compare(gate) else gate["verdict"] for gate in gates]
    verdict = overall(judged, [target["status"] for target in report["targets"]])
    if verdict in ("pass", allowed):
        return
    remedy = "Fix what failed (see its report) and run again." if verdict == "error" else "Fix it and run again, or say so: "
    raise EdgepressError(
        f"a run whose verdict is {verdict} is not accepted",
        "a baseline is what later releases are held to",
        remedy + ("" if verdict == "error" else f"--allow-verdict {verdict}."),
    )


def _nothing_to_compare(gate: Json) -> bool:
    return str(gate["name"]).startswith("baseline.") and gate["verdict"] == "undecided" and gate["interval"] is None


def _check_artifact(run_dir: Path, target: Json) -> None:
    """What is accepted is what was measured. A report may have come without its bundle."""
    path = run_dir / target["artifact"]["path"] if target["artifact"] else None
    if path is not None and path.exists() and (found := digest(path)) != target["artifact"]["sha256"]:
        stated = target["artifact"]["sha256"]
        raise IntegrityError(
            f"{str(path)!r} has sha256 {found}", f"the report of the run says {stated}", "It was changed since: run again."
        )


def _check_ratchet(report: Json, target: Json, old: Baseline, file: str) -> None:
    for fact in baseline_evidence(report, target, old, file):
        name = fact.name.removeprefix("baseline.")
        if fact.unmeasurable is not None:
            continue
        if fact.value is None:
            why = fact.incomparable or fact.error
            raise EdgepressError(
                f"the ratchet cannot tell whether {name} of {target['name']!r} got worse",
                why or "",
                "Make it comparable, or accept without the ratchet: --no-ratchet.",
            )
        if _worse(fact, name):
            low, high = fact.interval or (fact.value, fact.value)
            raise EdgepressError(
                f"the ratchet holds: {name} of {target['name']!r} got worse, {fact.value:.3f} {fact.unit} ({low:.3f} to {high:.3f})",
                fact.how,
                "Fix it, or accept without the ratchet: --no-ratchet.",
            )


def _worse(fact: Evidence, name: str) -> bool:
    """Is it worse beyond its interval?"""
    assert fact.value is not None, "what cannot be compared was refused"
    low = fact.interval[0] if fact.interval else fact.value
    return low > {"accuracy_drop": 0.0, "peak_memory": _MEMORY_SLACK}.get(name, 1.0)


def _entry(report: Json, target: Json, said: Json) -> Entry:
    metric, ratio, latency = target["metric"], target["latency_ratio"], target["latency_ms"]
    environment, reference = report["environment"], report["reference"]
    missing = [name for name, fact in (("metric", metric), ("artifact", target["artifact"])) if fact is None]
    missing += [] if reference.get("dataset_sha256") else ["hash of the validation data"]
    missing += [] if metric is None or "confidence" in metric else ["confidence of the drop"]
    if missing:
        raise EdgepressError(
            f"the run has no {missing[0]} of {target['name']!r}", "it was not executed, or an older version wrote it", "Run again."
        )
    low, high = metric["interval"]
    facts: dict[str, Any] = {
        **said,
        "artifact": target["artifact"]["sha256"],
        "checkpoint": environment["checkpoint_sha256"],
        "dataset": reference["dataset_sha256"],
        "device": target["device"],
        "drop": metric["drop"],
        "drop_confidence": metric["confidence"],
        "drop_high": high,
        "drop_low": low,
        "drop_unit": reference["metric"].get("drop_unit", "pp"),
        "executed_by": target["executed_by"],
        "fingerprint": environment["fingerprint"],
        "macs": reference["macs"],
        "metric": reference["metric"]["name"],
        "parameters": reference["parameters"],
        "peak_memory_bytes": target["peak_memory_bytes"],
        "precision": target["precision"],
        "runtime": target.get("runtime", target["name"].partition(":")[0]),
        "samples": metric["samples"],
        "scheme": target["scheme"]["label"],
        "size_bytes": loaded_bytes(target["artifact"]["size_bytes"], target.get("facts")),
        "value": metric["value"],
        "verdict": target_verdict({**target, "gates": [gate for gate in target["gates"] if not _nothing_to_compare(gate)]}),
    }
    if ratio is not None:
        low, high = ratio["interval"]
        facts |= {"latency_ratio": ratio["value"], "latency_low": low, "latency_high": high, "latency_reference": ratio["reference"]}
        facts["latency_confidence"] = ratio.get("confidence")
    if latency is not None:
        facts |= {"threads": latency["threads"], "batch": latency["batch"], "latency_p50_ms": latency["p50"]}
    return Entry.model_validate({key: _rounded(fact) if isinstance(fact, float) else fact for key, fact in facts.items()})


def _rounded(number: float) -> float:
    """Six digits are more than any measurement is worth, and can be read in a review."""
    return float(f"{number:.6g}")
