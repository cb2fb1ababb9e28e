"""`edgepress gate`, `explain` and `diff`: what is read from reports that exist."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from edgepress.baseline.file import read_baseline
from edgepress.commands.publish import Outputs, publish
from edgepress.commands.run import run_dir_of
from edgepress.config_waivers import read_waiver_file
from edgepress.judgement import against_baseline, compares, conclude
from edgepress.targets.errors import EdgepressError
from edgepress.validators.gates import exit_code
from edgepress.waivers import recorded_waivers

_POLICIES = {"fail": 1, "warn": 0, "pass": 0}


def judge_again(run_dir: Path, undecided: str | None, outputs: Outputs, baseline: Path | None, waivers: Path | None) -> int:
    """Show the verdict of a report, worked out anew from its gates, and tell the CI systems asked for.

    Args:
        baseline: compare with this accepted release rather than the one the run was compared with.
        waivers: apply those of this file rather than the recipe's. Either way they hold today or have expired.

    Returns:
        The exit code; for an undecided run the one `undecided` asks for, 3 without it.

    Raises:
        EdgepressError: no report, an unreadable one, an unknown policy, a file that cannot be used, or nothing that compares.
    """
    from edgepress.report.console import print_run

    if undecided is not None and undecided not in _POLICIES:
        raise EdgepressError(f"--undecided {undecided!r} is not a policy", "", f"Use {', '.join(_POLICIES)}.")
    report = judged(read_report(run_dir), baseline, waivers)
    print_run(report, run_dir)
    publish(report, outputs, undecided or "fail")
    if report["verdict"] == "undecided" and undecided is not None:
        return _POLICIES[undecided]
    return exit_code(report["verdict"])


def judged(report: dict[str, Any], baseline: Path | None, waivers: Path | None) -> dict[str, Any]:
    """The report with its verdict of today.

    Raises:
        EdgepressError: a file that cannot be used, or no gate that compares with a baseline.
    """
    if baseline is not None:
        if not compares(report):
            remedy = "Add e.g. `against_baseline: {accuracy_drop: 0.3pp, latency_ratio: 1.05}` to its `gates:` and run again."
            raise EdgepressError("--baseline has nothing to judge", "the recipe of this run has no `against_baseline`", remedy)
        report = against_baseline(report, read_baseline(baseline, report["project"]), str(baseline))
    gates = {target["name"]: [gate["name"] for gate in target["gates"]] for target in report["targets"] if not target["error"]}
    found = recorded_waivers(report) if waivers is None else read_waiver_file(waivers, gates)
    return conclude(report, found, datetime.now(UTC).date())


def show_explanation(run_dir: Path, name: str | None, as_json: bool) -> None:
    """Show where a target's accuracy went.

    Raises:
        EdgepressError: no report, an unreadable one, or a target it does not have.
    """
    from edgepress.explain import layers_of
    from edgepress.live import Live
    from edgepress.report.console import print_explanation
    from edgepress.report.explanation import explanation

    report = read_report(run_dir)
    target = next((t for t in report["targets"] if t["name"] == name), None)
    if target is None:
        names = ", ".join(t["name"] for t in report["targets"])
        what = "explain needs the name of a target" if name is None else f"{name!r} is not a target of {run_dir}"
        raise EdgepressError(what, "", f"{run_dir} has {names}.")
    with Live() as live:
        layers = layers_of(report, target, live)
    if as_json:
        typer.echo(json.dumps(explanation(report, target, layers), indent=2, ensure_ascii=False))
    else:
        print_explanation(report, target, layers)


def show_diff(run_a: Path, run_b: Path, html: Path | None) -> None:
    """Compare two runs target by target, in the terminal and, where asked for, as a page."""
    from edgepress.report.console import print_diff
    from edgepress.report.html import render_diff
    from edgepress.report.write import write_page

    before, after = read_report(run_a), read_report(run_b)
    if html is not None:
        write_page(html, render_diff(before, after))
    print_diff(before, after)


def show_trend(folder: Path, html: Path) -> None:
    """Draw every run below a folder, the oldest first.

    Raises:
        EdgepressError: it holds no run, or runs of several projects.
    """
    from edgepress.report.html import render_trend
    from edgepress.report.write import write_page

    found = {path.parent.resolve() for path in folder.glob("[!.]*/report.json")}  # `latest` is a link to one of them
    runs = sorted((read_report(run) for run in sorted(found)), key=lambda report: str(report["started"]))
    if not runs:
        raise EdgepressError(f"{str(folder)!r} holds no runs", "a run is a folder with a report.json in it", "Name the folder of the runs.")
    projects = sorted({str(run["project"]) for run in runs})
    if len(projects) > 1:
        raise EdgepressError(f"{str(folder)!r} holds runs of {', '.join(projects)}", "", "Keep the runs of one project in one folder.")
    write_page(html, render_trend(runs))
    print(html)


def read_report(run_dir: Path) -> dict[str, Any]:
    """The report of a run.

    Raises:
        EdgepressError: it is not there, not JSON, not of a schema this version reads, or does not hold together.
    """
    from edgepress.report.intact import faults

    path = run_dir_of(run_dir) / "report.json"
    try:
        report = json.loads(path.read_text("utf-8"), parse_constant=_no_number)
    except ValueError as error:
        raise EdgepressError(f"{str(path)!r} is not JSON", str(error), "Run again.") from error
    if not isinstance(report, dict) or report.get("schema") != "edgepress/report/v1":
        found = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise EdgepressError(f"{str(path)!r} has the schema {found!r}", "this version reads edgepress/report/v1", "Run again.")
    fault = next(faults(report), None)
    if fault is not None:
        raise EdgepressError(f"{str(path)!r} is not as a run wrote it", fault, "It was edited or cut; run again.")
    return report


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
