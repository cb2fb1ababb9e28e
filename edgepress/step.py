"""A step, its result, and the ways of doing it: run what is missing, only say what would run, or take what a run left."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from edgepress import isolate
from edgepress.isolate import Call, Limits
from edgepress.machine import cores
from edgepress.machine import fingerprint as machine_fingerprint
from edgepress.store import NEVER_RUN, Record, Store, fingerprint
from edgepress.targets.errors import EdgepressError


@dataclass(frozen=True)
class Result:
    """What a step made.

    Attributes:
        value: its JSON value; empty while `pending`.
        folder: its files.
        digest: what later steps depend on.
        cached: found in the store.
        seconds: how long making it took, whenever that was.
        pending: only planned: an earlier step has to run first.
    """

    value: Mapping[str, Any]
    folder: Path
    digest: str
    cached: bool
    seconds: float
    pending: bool = False


@dataclass(frozen=True)
class Step:
    """One function call whose result can be stored.

    Attributes:
        name: how people see it, e.g. `export tflite`.
        function: `module:name`, called as `(params, folder)`; `params["inputs"]` holds the folders of `inputs`.
        params: JSON-able; part of the key.
        inputs: results it reads; their digests are part of the key.
        root: the user's project folder where user code runs.
        files: files it depends on that no Python code opens.
        machine: the result holds for this machine alone.
        alone: nothing else may run meanwhile (timing).
        threads: for OpenMP and friends.
        limits: when to kill it.
        warm: it uses PyTorch, and starts from a process that has it loaded.
        resumes: it keeps its state in `params["scratch"]` while it runs, and goes on from there after it was killed.
        expected_s: seconds to the end of what it begins, about; of steps that wait for a core the longest goes first: it should not be
            left for the end.
    """

    name: str
    function: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Result] = field(default_factory=dict)
    root: Path | None = None
    files: tuple[Path, ...] = ()
    machine: bool = False
    alone: bool = False
    threads: int = 1
    limits: Limits = field(default_factory=Limits)
    warm: bool = False
    resumes: bool = False
    expected_s: float = 0.0

    def key(self, machine: str | None = None) -> str:
        """Everything known before it runs that its result depends on; a measurement on `machine` (a fingerprint), by default this one."""
        return fingerprint(
            {
                "function": self.function,
                "params": dict(self.params),
                "inputs": {name: result.digest for name, result in self.inputs.items()},
                "root": str(self.root),
                "machine": (machine or machine_fingerprint()) if self.machine else "",
            }
        )


class Executor(Protocol):
    """Does steps, plans them, or looks their results up."""

    def do(self, step: Step) -> Result:
        """The step's result."""
        ...


class Listener(Protocol):
    """Sees what happens; called from several threads."""

    def started(self, step: Step) -> None:
        """A step that is not in the store begins."""

    def moved(self, step: Step, text: str, done: int, total: int) -> None:
        """A running step says how far it is."""

    def ended(self, step: Step, result: Result | None) -> None:
        """A step is done (also when it was cached), or failed (`None`)."""

    def interrupted(self, step: Step) -> None:
        """A running step was ended from outside: the run is over."""


class Runner:
    """Runs what the store does not have, several steps at a time.

    Args:
        store: where results are kept.
        listener: told about every step.
        log: everything children print.
        jobs: how many steps may run at once.
        fresh: run every step again, even where a result is stored.
    """

    def __init__(self, store: Store, listener: Listener, log: Path, jobs: int | None = None, fresh: bool = False) -> None:
        self._store, self._listener, self._log, self._fresh = store, listener, log, fresh
        self._slots = _Slots(jobs or cores())
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._made: set[str] = set()

    def do(self, step: Step) -> Result:
        """Find or make the step's result.

        Raises:
            EdgepressError: what the step raised, or how its process died.
        """
        key = step.key()
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            record = None if self._fresh and key not in self._made else self._store.find(key)[0]
            if record is not None:
                result = _result(record, key not in self._made)
                self._listener.ended(step, result)
                return result
            with self._slots.take(step.alone, step.expected_s):
                result = self._resumed(step, key) if step.resumes else self._run(step, key)
            self._made.add(key)
            return result

    def _resumed(self, step: Step, key: str) -> Result:
        """Run a step that keeps its state; another run that does the same step waits, and then finds the result."""
        with self._store.scratch(key, self._fresh) as scratch:
            record = None if self._fresh else self._store.find(key)[0]
            if record is not None:
                result = _result(record, True)
                self._listener.ended(step, result)
                return result
            result = self._run(step, key, {"scratch": str(scratch)})
            shutil.rmtree(scratch, ignore_errors=True)
            return result

    def _run(self, step: Step, key: str, extra: Mapping[str, str] = MappingProxyType({})) -> Result:
        space = self._store.workspace()
        folder = space / "files"
        inputs = {name: str(result.folder) for name, result in step.inputs.items()}
        ignore = (self._store.root, self._log)
        params = {**step.params, **extra, "inputs": inputs}
        request = Call(step.function, params, folder, step.name, step.root, ignore, step.threads, step.warm)
        self._listener.started(step)
        try:
            outcome = isolate.call(request, step.limits, self._log, lambda *event: self._listener.moved(step, *event))
            depends = tuple(sorted({*outcome.files, *map(str, step.files)}))
            record = self._store.put(key, isolate.Outcome(**{**vars(outcome), "files": depends}), space)
        except KeyboardInterrupt:
            self._store.discard(space)
            self._listener.interrupted(step)
            raise
        except BaseException:
            self._store.discard(space)
            self._listener.ended(step, None)
            raise
        result = _result(record, False)
        self._listener.ended(step, result)
        return result


@dataclass(frozen=True)
class Planned:
    """One line of `edgepress plan`: `why` is empty for a step that is stored."""

    name: str
    cached: bool
    why: str
    seconds: float


class Planner:
    """Looks every step up and runs none; what depends on a missing result is missing too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.steps: list[Planned] = []

    def do(self, step: Step) -> Result:
        """The stored result, or a pending one."""
        waiting = [name for name, result in step.inputs.items() if result.pending]
        record, why = (None, f"needs {', '.join(waiting)}") if waiting else self._store.find(step.key())
        if not any(planned.name == step.name for planned in self.steps):
            self.steps.append(Planned(step.name, record is not None, why, record.seconds if record else 0.0))
        if record is None:
            return Result({}, Path(), "", False, 0.0, pending=True)
        return _result(record, True)


class Lookup:
    """Finds the results of a run again and makes none: what is not stored fails like a step that failed in the run.

    Attributes:
        steps: digest of a result -> the step it came from.
        misses: name of a step that has no result, in order -> why not.
    """

    def __init__(self, store: Store, machine: str) -> None:
        """Look into `store` for what was made on `machine` (the fingerprint in the run's report)."""
        self._store, self._machine = store, machine
        self.steps: dict[str, Step] = {}
        self.misses: dict[str, str] = {}

    def do(self, step: Step) -> Result:
        """The stored result.

        Raises:
            EdgepressError: there is none.
        """
        record, why = self._store.find(step.key(self._machine))
        if record is None:
            self.misses[step.name] = why
            raise EdgepressError(f"the store has no result of the step {step.name!r}", why, "Run the recipe again.")
        self.steps[record.digest] = step
        return _result(record, True)

    def lost(self) -> str:
        """Which result is missing, and why: the first that is another one by now, else the first; empty where none is.

        Of the others, those before it may have failed in the run, and those after it were looked for in its place.
        """
        changed = [(name, why) for name, why in self.misses.items() if why != NEVER_RUN] or list(self.misses.items())
        return f"step {changed[0][0]!r}: {changed[0][1]}" if changed else ""


def _result(record: Record, cached: bool) -> Result:
    return Result(record.value, record.folder, record.digest, cached, record.seconds)


class _Slots:
    """At most `count` holders at once. Of those that wait, the one that will take longest is next, of equals the first to come; before them
    one that asks to be alone, which waits for all holders to end."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = max(1, count), 0
        self._turns = itertools.count()
        self._waiting: list[tuple[bool, float, int]] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, alone: bool, expected_s: float) -> Iterator[None]:
        need = self._count if alone else 1
        with self._changed:
            place = (not alone, -expected_s, next(self._turns))
            self._waiting.append(place)
            try:
                while min(self._waiting) != place or self._taken + need > self._count:
                    self._changed.wait()
                self._taken += need
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()  # there may be a core for the next one too
        try:
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify_all()
