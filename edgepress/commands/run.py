"""`edgepress run` and `edgepress plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

import typer

from edgepress.config import Config, TargetPlan, load, recipe
from edgepress.engine import RunOptions, accepted_release, open_store
from edgepress.engine import run as run_all
from edgepress.live import Live
from edgepress.pipeline import Pipeline
from edgepress.step import Planner
from edgepress.targets.errors import ConfigError, EdgepressError
from edgepress.validators.gates import exit_code


def run_recipe(config: Path, only: Sequence[str], options: RunOptions, as_json: bool) -> int:
    """Run a recipe and show its verdict.

    Returns:
        The exit code of the verdict.
    """
    from edgepress.report.console import print_run

    checked, plans = load_recipe(config, only)
    with Live() as live:
        finished = run_all(checked, plans, options, live)
    if as_json:
        typer.echo(json.dumps(finished.report, indent=2, ensure_ascii=False))
    else:
        print_run(finished.report, finished.run_dir)
    return exit_code(finished.report["verdict"])


def show_plan(config: Path, only: Sequence[str], as_json: bool) -> None:
    """Show which steps a run would do, and why; run none of them."""
    from edgepress.report.console import print_plan

    checked, plans = load_recipe(config, only)
    planner = Planner(open_store(checked))
    pipeline = Pipeline(checked, plans, planner, accepted_release(checked, plans, None)[1])
    prepared = pipeline.prepare()
    for plan in plans:
        pipeline.measure(pipeline.compress(plan, prepared), prepared)
    if as_json:
        typer.echo(json.dumps([asdict(step) for step in planner.steps], indent=2))
    else:
        print_plan([asdict(step) for step in planner.steps])


def load_recipe(path: Path, only: Sequence[str]) -> tuple[Config, tuple[TargetPlan, ...]]:
    """The recipe and the targets asked for.

    Raises:
        ConfigError: the recipe is wrong, or `only` names a target it does not have.
    """
    config = load(path)
    plans = recipe(config)
    names = [plan.target.name for plan in plans]
    for name in only:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"--only {name!r} is not a target of {path}", "", f"{hint}It has {', '.join(names)}.")
    return config, tuple(plan for plan in plans if not only or plan.target.name in only)


def run_dir_of(path: Path) -> Path:
    """The folder of a run.

    Raises:
        EdgepressError: it holds no report.
    """
    if not (path / "report.json").is_file():
        raise EdgepressError(f"{str(path)!r} holds no report.json", "it is not the folder of a run", "Run `edgepress run` first.")
    return path
