"""A target of a run against the accepted release, as evidence. What is not comparable says why, and is never a number.

accuracy     paired with the accepted scores sample by sample; comparable on the same validation data, with the same metric and unit.
             Without scores the difference of the two drops, intervals added; the same float original and confidence then too.
latency      beside the accepted artifact in one window, where that was taken; comparable anywhere.
             Else the ratio of the two ratios to fp32, intervals added; comparable on the same machine, with the same threads, batch,
             float original, runtime version and confidence.
peak memory  with the recorded figure; comparable on the same machine, with the same threads and batch.
size         with the recorded figure; always comparable.

Added intervals are wide enough whatever the two estimates have in common: the standard error of a difference is at most the sum of
the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepress.baseline.file import Baseline, Entry
from edgepress.bundle.digest import loaded_bytes
from edgepress.targets.errors import IntegrityError
from edgepress.targets.nouns import Evidence
from edgepress.validators.accuracy import compare_zero_one
from edgepress.validators.intervals import Interval
from edgepress.validators.metrics import POINTS
from edgepress.validators.score_bits import unpack

Json = Mapping[str, Any]

ACCEPT = "Accept a run to compare with: `edgepress baseline accept RUN_DIR --reason TEXT`."
_ON_THE_SAME_DATA = f"Run the accepted release on this data first. {ACCEPT}"
_ARTIFACTS = "or have the accepted artifact timed beside this one: `edgepress run --baseline-artifacts DIR`, DIR holding its bundle."


@dataclass(frozen=True)
class _Candidate:
    """One target of a report."""

    report: Json
    target: Json

    @property
    def checkpoint(self) -> str:
        return str(self.report["environment"]["checkpoint_sha256"])

    @property
    def fingerprint(self) -> str:
        return str(self.report["environment"]["fingerprint"])

    @property
    def dataset(self) -> str | None:
        found = self.report["reference"].get("dataset_sha256")
        return None if found is None else str(found)

    @property
    def unit(self) -> str:
        return str(self.report["reference"]["metric"].get("drop_unit", POINTS))

    @property
    def loaded_bytes(self) -> int:
        return loaded_bytes(self.target["artifact"]["size_bytes"], self.target.get("facts"))

    @property
    def against(self) -> Json:
        return self.target.get("against_baseline") or {}

    def setting(self, name: str) -> int | None:
        """`threads` or `batch` of its latencies; None where none were taken."""
        return (self.target["latency_ms"] or {}).get(name)


def baseline_evidence(report: Json, target: Json, baseline: Baseline | None, file: str, confidence: float = 0.95) -> list[Evidence]:
    """Every fact a `baseline.` gate may ask for.

    Args:
        report: the run's; its `environment` and `reference` are read.
        target: a validated target of it.
        baseline: the accepted release; None where there is none yet.
        file: its path, for messages.
        confidence: of the interval of a paired comparison.
    """
    name = target["name"]
    entry = baseline.entries.get(name) if baseline is not None else None
    if baseline is None or entry is None:
        what = f"there is no baseline {file}" if baseline is None else f"the baseline has no target {name!r}"
        return [_incomparable(fact, what, ACCEPT) for fact in ("accuracy_drop", "latency_ratio", "size", "peak_memory")]
    if entry.runtime != target.get("runtime", entry.runtime):
        what = f"the baseline of {name!r} is for {entry.runtime}, this is for {target['runtime']}"
        return [_incomparable(fact, what, ACCEPT) for fact in ("accuracy_drop", "latency_ratio", "size", "peak_memory")]
    found = _Candidate(report, target)
    return [
        _accuracy(found, entry, baseline.scores.get(name), confidence),
        _latency(found, entry),
        Evidence("baseline.size", found.loaded_bytes / entry.size_bytes, "ratio"),
        _memory(found, entry),
    ]


def _accuracy(found: _Candidate, entry: Entry, accepted: str | None, confidence: float) -> Evidence:
    metric, name = found.target["metric"], found.report["reference"]["metric"]["name"]
    if entry.metric != name or entry.drop_unit != found.unit:
        what = f"the baseline's metric is {entry.metric} in {entry.drop_unit}, this run's {name} in {found.unit}"
        return _incomparable("accuracy_drop", what, f"Run the accepted release with this metric first. {ACCEPT}")
    if entry.dataset != found.dataset:
        mine = found.dataset[:12] if found.dataset else "not recorded"
        what = f"the baseline's validation data has the hash {entry.dataset[:12]}, this run's {mine}"
        return _incomparable("accuracy_drop", what, _ON_THE_SAME_DATA)
    scores = found.target.get("sample_scores")
    if accepted is not None and scores is not None:
        try:
            before, after = unpack(accepted, entry.samples), unpack(scores, metric["samples"])
        except IntegrityError as error:
            return Evidence("baseline.accuracy_drop", None, entry.drop_unit, error=str(error))
        if len(before) != len(after):
            what = f"the baseline was scored on {len(before):,} samples, this run on {len(after):,}"
            return _incomparable("accuracy_drop", what, _ON_THE_SAME_DATA)
        drop, (low, high) = compare_zero_one(before, after, confidence)
        scale = 100.0 if entry.drop_unit == POINTS else 1.0
        how = "paired with the baseline's scores"
        return Evidence("baseline.accuracy_drop", drop * scale, entry.drop_unit, (low * scale, high * scale), metric["samples"], how)
    if entry.checkpoint != found.checkpoint:
        what = "there are no scores per sample to pair, and the baseline's drop is counted from another float original"
        return _incomparable("accuracy_drop", what, ACCEPT)
    if metric.get("confidence") != entry.drop_confidence:
        what = f"the baseline's drop has an interval of {entry.drop_confidence:.0%}, this run's of {metric.get('confidence') or 0:.0%}"
        return _incomparable("accuracy_drop", what, f"Use one confidence for both. {ACCEPT}")
    low, high = metric["interval"]
    how = "difference of the two drops, intervals added (no scores per sample to pair)"
    interval = (low - entry.drop_high, high - entry.drop_low)
    return Evidence("baseline.accuracy_drop", metric["drop"] - entry.drop, entry.drop_unit, interval, metric["samples"], how)


def _latency(found: _Candidate, entry: Entry) -> Evidence:
    against, ratio = found.against, found.target["latency_ratio"]
    if ratio is None:
        why = against.get("unmeasurable")
        error = None if why else "the latency of this target was not taken"
        return Evidence("baseline.latency_ratio", None, "ratio", error=error, unmeasurable=why)
    if against.get("error"):
        return Evidence("baseline.latency_ratio", None, "ratio", error=against["error"])
    window = against.get("latency")
    if window is not None and window["artifact_sha256"] == entry.artifact:
        how = "beside the baseline's own artifact, in one window"
        return Evidence("baseline.latency_ratio", window["value"], "ratio", tuple(window["interval"]), window["pairs"], how)
    if entry.latency_ratio is None or entry.latency_low is None or entry.latency_high is None:
        return _incomparable("latency_ratio", "the baseline has no latency", ACCEPT)
    what = _other_setting(found, entry) or _other_reference(found, entry, ratio)
    if what is not None:
        return _incomparable("latency_ratio", what, f"Run where and as the baseline was, {_ARTIFACTS}")
    low, high = ratio["interval"]
    interval: Interval = (low / entry.latency_high, high / entry.latency_low)
    how = "ratio of the two ratios to fp32, intervals added (the baseline's artifact was not at hand)"
    return Evidence("baseline.latency_ratio", ratio["value"] / entry.latency_ratio, "ratio", interval, found.setting("samples") or 0, how)


def _memory(found: _Candidate, entry: Entry) -> Evidence:
    peak = found.target["peak_memory_bytes"]
    if peak is None:
        why = found.against.get("unmeasurable")
        error = None if why else "the peak memory of this target was not taken"
        return Evidence("baseline.peak_memory", None, "ratio", error=error, unmeasurable=why)
    if entry.peak_memory_bytes is None:
        return _incomparable("peak_memory", "the baseline has no peak memory", ACCEPT)
    what = _other_setting(found, entry)
    if what is not None:
        return _incomparable("peak_memory", what, f"Run where and as the baseline was. {ACCEPT}")
    return Evidence("baseline.peak_memory", peak / entry.peak_memory_bytes, "ratio")


def _other_setting(found: _Candidate, entry: Entry) -> str | None:
    """Why the machine, or what it was asked to do, is not that of the baseline."""
    if entry.fingerprint != found.fingerprint:
        return f"the baseline was measured on machine {entry.fingerprint}, this run on {found.fingerprint}"
    for name, accepted in (("threads", entry.threads), ("batch", entry.batch)):
        if accepted != found.setting(name):
            return f"the baseline was measured with {name} {accepted}, this run with {found.setting(name)}"
    return None


def _other_reference(found: _Candidate, entry: Entry, ratio: Json) -> str | None:
    """Why the float model that both latencies are ratios to is not the same."""
    reference = found.report["reference"]
    original = (entry.checkpoint, entry.parameters, entry.macs)
    if original != (found.checkpoint, reference["parameters"], reference["macs"]):
        return "the baseline's ratio is to another float original"
    if entry.latency_reference != ratio["reference"]:
        return f"the baseline's ratio is to {entry.latency_reference}, this run's to {ratio['reference']}"
    if entry.latency_confidence != ratio.get("confidence"):
        mine, accepted = ratio.get("confidence") or 0, entry.latency_confidence or 0
        return f"the baseline's ratio has an interval of {accepted:.0%}, this run's of {mine:.0%}"
    return None


def _incomparable(fact: str, what: str, remedy: str) -> Evidence:
    return Evidence(f"baseline.{fact}", None, "", incomparable=what, remedy=remedy)
