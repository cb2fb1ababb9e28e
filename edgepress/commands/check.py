"""`edgepress check`: what is wrong with a recipe, before a run."""

from __future__ import annotations

from pathlib import Path

import typer

from edgepress.validators.gates import exit_code, overall


def check_recipe(config: Path, sarif: Path | None, github: bool) -> int:
    """Show the findings, and write them where they were asked for.

    Returns:
        The exit code a run would have at best: 0 without findings, 2 where it could not be judged, 3 where a gate could not be decided.
    """
    from edgepress.check import RULES, check
    from edgepress.commands.publish import write_text
    from edgepress.report.github import annotation_lines
    from edgepress.report.sarif import render_sarif

    found = check(config)
    if sarif is not None:
        write_text(sarif, render_sarif(found.findings, RULES, found.unchecked))
    for finding in found.findings:
        typer.echo(f"{finding.path}:{finding.line or 1}: {finding.level}: {finding.summary} [{finding.rule}]")
    if github:
        for line in annotation_lines(found.findings):
            typer.echo(line)
    for note in found.unchecked:
        typer.echo(f"not checked: {note}", err=True)
    if not found.findings:
        typer.echo(f"{config}: nothing found")
    return exit_code(overall([finding.verdict for finding in found.findings] or ["pass"]))
