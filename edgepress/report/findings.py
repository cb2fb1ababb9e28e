"""What is wrong, and on which line of the recipe: the form that GitHub, GitLab and SARIF readers share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepress.report.facts import gate_facts, run_facts
from edgepress.report.present import WORDS, gate_sentence, problems

Json = Mapping[str, Any]

#: What a problem is to the job that reads it; an undecided gate is what the policy says.
LEVELS = {"error": "error", "fail": "error", "waived": "warning", "accepted": "note"}
UNDECIDED_LEVELS = {"fail": "error", "warn": "warning", "pass": "note"}


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        rule: what kind of thing, e.g. `gate/accuracy_drop`, `recipe/unknown-key`.
        verdict: `error`, `fail`, `undecided`, `waived` or `accepted`.
        level: `error` fails the job, `warning` and `note` do not.
        title: a few words.
        summary: one line: what, and what to do next.
        details: `name: value` lines; empty where the summary says all.
        path: of the recipe, relative to the repository, with forward slashes.
        line: from 1; None where it is not known.
        key: what is the same in every run for the same problem, whatever was measured.
    """

    rule: str
    verdict: str
    level: str
    title: str
    summary: str
    details: tuple[str, ...]
    path: str
    line: int | None
    key: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits: of rule, file and key alone, so that it stays when numbers and lines move."""
        return hashlib.sha256("\0".join((self.rule, self.path, *self.key)).encode("utf-8", "surrogatepass")).hexdigest()


def verdict_findings(report: Json, undecided: str = "fail") -> list[Finding]:
    """Everything in a report that is no pass, the worst first.

    Args:
        report: the report dictionary.
        undecided: `fail`, `warn` or `pass`: what an undecided gate counts as.
    """
    levels = {**LEVELS, "undecided": UNDECIDED_LEVELS[undecided]}
    path = repository_path(report.get("recipe") or "edgepress.yaml")
    found: list[Finding] = []
    if not report["targets"]:
        summary = "The run has no target, so nothing was judged. Next: add `targets:` to the recipe."
        found.append(Finding("run/targets", "error", "error", "no target", summary, tuple(run_facts(report)), path, None, ("targets",)))
    for row, verdict, what, step in problems(report):
        gate = next((g for g in row.gates(verdict) if gate_sentence(g) == what), None)
        name = gate["name"] if gate else "artifact"
        title = f"{row.name}: {name} {WORDS.get(verdict, verdict)}"
        summary = f"{row.name}: {what}" + (f". Next: {step}" if step else "")
        details = (*(gate_facts(row, gate) if gate else ()), *run_facts(report, row))
        line = (gate or {}).get("line") or row.data.get("line")
        found.append(Finding(f"gate/{name}", verdict, levels[verdict], title, summary, details, path, line, (row.name, name)))
    return found


def repository_path(path: str | Path) -> str:
    """A path relative to the root of the repository it lies in, as code hosts name files; as it was given where it lies in none."""
    whole = Path(os.path.normpath(Path(path).absolute()))
    named = next((os.environ[name] for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR") if os.environ.get(name)), None)
    roots = [Path(named)] if named else [parent for parent in whole.parents if (parent / ".git").exists()][:1]
    for root in (*roots, Path.cwd()):
        if whole.is_relative_to(root.absolute()):
            return whole.relative_to(root.absolute()).as_posix()
    return Path(path).as_posix()
