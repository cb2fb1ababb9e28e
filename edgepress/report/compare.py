"""What changed from one run to another."""

from __future__ import annotations

from dataclasses import dataclass

from edgepress.bundle.digest import loaded_bytes
from edgepress.report import numbers
from edgepress.report.present import Json, drop_unit, scheme_label, shown_target_verdict

COLUMNS = ("verdict", "drop", "latency", "size", "scheme")


@dataclass(frozen=True)
class Change:
    """One fact in both runs, as text."""

    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Is it another one?"""
        return self.before != self.after


@dataclass(frozen=True)
class TargetChange:
    """One target in both runs: a `Change` for each of `COLUMNS`."""

    target: str
    changes: dict[str, Change]


@dataclass(frozen=True)
class RunChange:
    """Two runs: every target of either, the verdict, and what else is different."""

    rows: tuple[TargetChange, ...]
    verdict: Change
    environment: tuple[str, ...]


def compare_runs(before: Json, after: Json) -> RunChange:
    """Target by target, those of the earlier run first."""
    old, new = ({target["name"]: target for target in report["targets"]} for report in (before, after))
    names, unit = [*old, *(name for name in new if name not in old)], drop_unit(after)
    rows = [
        TargetChange(name, dict(zip(COLUMNS, map(Change, _facts(old.get(name), unit), _facts(new.get(name), unit)), strict=True)))
        for name in names
    ]
    verdict = Change(before["verdict"], after["verdict"])
    return RunChange(tuple(rows), verdict, tuple(_environment(before["environment"], after["environment"])))


def _facts(target: Json | None, unit: str) -> list[str]:
    if target is None:
        return ["absent", *[numbers.NONE] * 4]
    metric, ratio, artifact = target["metric"], target["latency_ratio"], target["artifact"]
    return [
        shown_target_verdict(target),
        numbers.drop(metric["drop"], unit) if metric else numbers.NONE,
        numbers.ratio(ratio["value"]) if ratio else numbers.NONE,
        numbers.size(loaded_bytes(artifact["size_bytes"], target.get("facts"))) if artifact else numbers.NONE,
        scheme_label(target.get("scheme") or target["precision"]),
    ]


def _environment(before: Json, after: Json) -> list[str]:
    changes = []
    for name in ("checkpoint_sha256", "config_sha256", "fingerprint"):
        if before[name] != after[name]:
            changes.append(f"{name.replace('_', ' ')}: {before[name][:12]} -> {after[name][:12]}")
    versions, later = before["packages"], after["packages"]
    for name in sorted({*versions, *later}):
        if versions.get(name) != later.get(name):
            changes.append(f"{name}: {versions.get(name, 'absent')} -> {later.get(name, 'absent')}")
    return changes
