"""Where a verdict is read: files and messages for CI systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

#: The file GitLab looks for when a job names no other.
METRICS = "metrics.txt"


@dataclass(frozen=True)
class Outputs:
    """What `edgepress gate` tells besides the terminal.

    Attributes:
        junit: JUnit file.
        github: print annotations, and add to the step summary where GitHub names one.
        gitlab: Code Quality file; `metrics.txt` is written beside it.
        metrics: OpenMetrics file, in place of the one beside `gitlab`.
    """

    junit: Path | None = None
    github: bool = False
    gitlab: Path | None = None
    metrics: Path | None = None


def publish(report: Mapping[str, Any], outputs: Outputs, undecided: str) -> None:
    """Write and print what was asked for; each file appears whole.

    Args:
        report: the judged report.
        outputs: what to write.
        undecided: `fail`, `warn` or `pass`: what an undecided gate counts as.
    """
    from edgepress.report.findings import verdict_findings
    from edgepress.report.github import annotation_lines, append_summary
    from edgepress.report.gitlab import render_code_quality
    from edgepress.report.junit import render_junit
    from edgepress.report.openmetrics import render_metrics

    findings = verdict_findings(report, undecided)
    if outputs.junit is not None:
        write_text(outputs.junit, render_junit(report, undecided))
    if outputs.gitlab is not None:
        write_text(outputs.gitlab, render_code_quality(findings))
    metrics = outputs.metrics or (outputs.gitlab.with_name(METRICS) if outputs.gitlab else None)
    if metrics is not None:
        write_text(metrics, render_metrics(report))
    if outputs.github:
        for line in annotation_lines(findings):
            typer.echo(line)
        append_summary(report)


def write_text(path: Path, text: str) -> None:
    """Replace `path`, in a folder that is made if need be, by `text` in one rename."""
    from edgepress.report.write import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
