"""Runs a recipe: all targets side by side, measurements one after the other, then verdicts, bundle and report."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgepress import isolate
from edgepress.baseline.artifacts import AtHand, at_hand
from edgepress.baseline.file import Baseline, read_baseline
from edgepress.config import Config, TargetPlan, recipe
from edgepress.disk import writing
from edgepress.machine import fingerprint
from edgepress.pipeline import Pipeline
from edgepress.results import Prepared, TargetRun
from edgepress.run_folder import reserved
from edgepress.step import Listener, Runner
from edgepress.store import Store
from edgepress.targets.errors import ConfigError, ProjectError

_STALE_S = 24 * 3600.0


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run.

    Attributes:
        out: folder for report and bundle; None for `runs/<time>`.
        jobs: steps at a time; None for one per core.
        fresh: run every step again.
        baseline_artifacts: where the accepted release's artifacts are, to be timed beside this run's.
    """

    out: Path | None = None
    jobs: int | None = None
    fresh: bool = False
    baseline_artifacts: Path | None = None


@dataclass(frozen=True)
class Finished:
    """A finished run: where it is, and its report."""

    run_dir: Path
    report: dict[str, Any]


def open_store(config: Config) -> Store:
    """The store of a recipe: `EDGEPRESS_STORE`, else `.edgepress/store` beside it."""
    root = Path(os.environ.get("EDGEPRESS_STORE") or config.path.parent / ".edgepress" / "store").absolute()
    scratch = root / "tmp"
    if scratch.is_dir():
        for left in scratch.iterdir():  # what killed runs left behind
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)
    return Store(root)


def accepted_release(config: Config, plans: Sequence[TargetPlan], artifacts: Path | None) -> tuple[Baseline | None, dict[str, AtHand]]:
    """The baseline of a recipe, None where no gate asks for it or none was accepted yet; and its artifacts that are at hand.

    Raises:
        ConfigError, IntegrityError: its file, or the folder given, cannot be used.
    """
    asked = any(gate.name.startswith("baseline.") for plan in plans for gate in plan.gates)
    if artifacts is not None and not (asked and config.baseline.is_file()):
        why = f"there is no {config.baseline.name}" if asked else "the recipe has no `against_baseline`"
        raise ConfigError("--baseline-artifacts has nothing to compare", why, "See `edgepress baseline accept --help`.")
    if not asked or not config.baseline.is_file():
        return None, {}
    baseline = read_baseline(config.baseline, config.project)
    return baseline, at_hand(baseline, config.baseline, fingerprint(), artifacts)


def run(config: Config, plans: Sequence[TargetPlan], options: RunOptions, listener: Listener) -> Finished:
    """Do everything a recipe asks for.

    Returns:
        The run, whatever its verdict.

    Raises:
        EdgepressError: nothing can be judged: the user's side is wrong, or the output folder cannot be used.
        OSError: a disk is full; its `filename` is on it.
        KeyboardInterrupt: every child process has been ended.
    """
    from edgepress.assemble import assemble, release_of
    from edgepress.bundle.provenance import builder_id
    from edgepress.bundle.write import write_bundle
    from edgepress.report.write import write_report

    started, clock = datetime.now(UTC), time.monotonic()
    if not config.checkpoint.is_file():
        raise ProjectError(f"checkpoint {str(config.checkpoint)!r} does not exist", "", "Check `model.checkpoint` in the recipe.")
    builder_id()  # a wrong one is refused before the work, not after it
    baseline, accepted = accepted_release(config, plans, options.baseline_artifacts)
    store = open_store(config)
    with reserved(options.out, started) as folder, _log(store, config, started) as log:
        runner = Runner(store, listener, log, options.jobs or config.run.jobs, options.fresh)
        pipeline = Pipeline(config, plans, runner, accepted)
        prepared, runs = _interruptible(lambda pool: _compress(pipeline, plans, pool), len(plans))
        for target in runs:
            _timed(target, pipeline, prepared)
        repeated = _repeated(config, plans, options)
        report, shipments = assemble(config, prepared, runs, baseline, started, time.monotonic() - clock, repeated)
        with writing(folder.staging):
            report["bundle"] = {"path": "bundle", "sha256": write_bundle(folder.staging, report, shipments, release_of(config, prepared))}
            if prepared.rebuilt is not None:
                shutil.copytree(prepared.rebuilt.folder, folder.staging / "compressed")
            shutil.copyfile(log, folder.staging / "log.txt")
            write_report(folder.staging, report)
            folder.publish()
    return Finished(folder.place, report)


def _repeated(config: Config, plans: Sequence[TargetPlan], options: RunOptions) -> list[str]:
    """What the command line says about what is judged, and where it goes."""
    only = [plan.target.name for plan in plans] if len(plans) < len(recipe(config)) else []
    words = [word for name in only for word in ("--only", name)]
    words += ["--baseline-artifacts", str(options.baseline_artifacts)] if options.baseline_artifacts else []
    return words + (["--out", str(options.out)] if options.out else [])


def score_original(config: Config, listener: Listener) -> Mapping[str, Any]:
    """The first steps of a run: load the user's model and data, and score the float original on the validation set.

    Returns:
        What `edgepress.steps.score:original` does.

    Raises:
        EdgepressError: the user's model, checkpoint, data or metric cannot be used.
    """
    with single_steps(config, open_store(config), listener) as runner:
        return Pipeline(config, (), runner).original()[1].value


@contextmanager
def single_steps(config: Config, store: Store, listener: Listener) -> Iterator[Runner]:
    """A runner for steps that make no run; their log is kept beside the store, and children end with it."""
    with _log(store, config, datetime.now(UTC)) as log:
        yield Runner(store, listener, log, config.run.jobs)


@contextmanager
def _log(store: Store, config: Config, started: datetime) -> Iterator[Path]:
    """What steps print, beside the store; children end with it."""
    log = store.root.parent / f"log-{os.getpid()}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with writing(log):
        log.write_text(f"edgepress run {config.path}\nstarted {started.isoformat(timespec='seconds')}\n")
    try:
        yield log
    except KeyboardInterrupt:
        isolate.kill_all()
        raise
    finally:
        log.replace(log.with_name("log.txt"))


def _compress(pipeline: Pipeline, plans: Sequence[TargetPlan], pool: ThreadPoolExecutor) -> tuple[Prepared, list[TargetRun]]:
    prepared = pipeline.prepare()
    futures: list[Future[TargetRun]] = [pool.submit(_timed_compress, pipeline, plan, prepared) for plan in plans]
    return prepared, [future.result() for future in futures]


def _timed_compress(pipeline: Pipeline, plan: TargetPlan, prepared: Prepared) -> TargetRun:
    clock = time.monotonic()
    run = pipeline.compress(plan, prepared)
    run.seconds += time.monotonic() - clock
    return run


def _timed(run: TargetRun, pipeline: Pipeline, prepared: Prepared) -> None:
    clock = time.monotonic()
    pipeline.measure(run, prepared)
    run.seconds += time.monotonic() - clock


def _interruptible(action: Callable[[ThreadPoolExecutor], Any], workers: int) -> Any:
    """Run `action` with a thread pool; on Ctrl-C end all children first, so that the threads end too."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        return action(pool)
    except KeyboardInterrupt:
        isolate.kill_all()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
