"""`edgepress baseline accept`: a run becomes what later runs are held to."""

from __future__ import annotations

import getpass
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import typer

from edgepress.baseline.accept import Acceptance, accept
from edgepress.commands.judge import read_report
from edgepress.judgement import conclude
from edgepress.waivers import recorded_waivers


def accept_run(run_dir: Path, reason: str, file: Path | None, by: str | None, allowed: str | None, ratchet: bool | None) -> None:
    """Write a run into the baseline and say what to do with the file.

    Raises:
        EdgepressError: the run must not be accepted, or a file cannot be read; the baseline is as it was.
    """
    now = datetime.now(UTC)
    report = read_report(run_dir)
    report = conclude(report, recorded_waivers(report), now.date())
    place = accept(run_dir, report, file, Acceptance(reason, by or _user(), now, allowed, ratchet))
    typer.echo(f"{place}: {', '.join(target['name'] for target in report['targets'])} accepted. Review the change and commit it.")


def _user() -> str:
    """Who git says is at work here, else the login name."""
    named = os.environ.get("GIT_AUTHOR_NAME", "").strip()
    if named:
        return named
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() or getpass.getuser()
    except (OSError, subprocess.TimeoutExpired, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
