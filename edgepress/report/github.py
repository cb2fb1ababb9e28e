"""GitHub: workflow commands that annotate a run and its pull request, and the step summary.

Syntax and limits: docs.github.com, "Workflow commands for GitHub Actions". A step shows ten annotations of each kind, the first ten; a
summary over 1 MiB is refused whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepress.report.findings import Finding
from edgepress.report.summary import render_summary

#: Annotations of one kind that a step shows.
SHOWN = 10
#: Bytes that one step may write to its summary.
SUMMARY_BYTES = 1 << 20
_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
_LONGEST = 4000


def annotation_lines(findings: Sequence[Finding]) -> list[str]:
    """One workflow command a finding, errors first; where there are more than are shown, the last one shown says how many are not."""
    lines: list[str] = []
    for level, name in _COMMANDS.items():
        these = [finding for finding in findings if finding.level == level]
        shown = these if len(these) <= SHOWN else these[: SHOWN - 1]
        lines += [_command(name, finding) for finding in shown]
        if len(these) > len(shown):
            rest = len(these) - len(shown)
            lines.append(f"::{name} title={_property(f'edgepress: {rest} more')}::{_data(_more(these[len(shown) :]))}")
    return lines


def append_summary(report: Mapping[str, Any]) -> Path | None:
    """Add the verdict table to the file that `GITHUB_STEP_SUMMARY` names, in one write and within what the step has left.

    Returns:
        The file; None where the variable is not set, as outside GitHub, or where earlier commands of the step have filled it.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return None
    path = Path(name)
    used = path.stat().st_size if path.exists() else 0
    text = render_summary(report, most_bytes=SUMMARY_BYTES - used - 1)
    if not text.strip():
        return None
    with path.open("ab", buffering=0) as sink:
        sink.write(text.encode("utf-8", "replace") + b"\n")
    return path


def _command(name: str, finding: Finding) -> str:
    place = {"file": finding.path, "line": str(finding.line)} if finding.line else {"file": finding.path}
    properties = ",".join(f"{key}={_property(value)}" for key, value in {**place, "title": f"edgepress: {finding.title}"}.items())
    text = "\n".join((finding.summary, *finding.details))
    return f"::{name} {properties}::{_data(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…')}"


def _more(rest: Sequence[Finding]) -> str:
    text = "GitHub shows ten of a kind. Not shown: " + ", ".join(finding.title for finding in rest)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _data(text: str) -> str:
    """A message: what would end the command is escaped."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A property's value: what would end the value is escaped too."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
