"""Run a function in a process of its own, with a timeout and a memory limit. What goes wrong in there stays in there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edgepress import disk, printed
from edgepress.forkserver import Forked, server
from edgepress.machine import resident_bytes
from edgepress.targets import errors

#: Kept out of every child: nothing phones home, nothing asks a hub, nothing writes .pyc files beside the user's code.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NNCF_CI": "1",  # its way to send nothing
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
}
#: Threads of GNU OpenMP spin at barriers; where other work wants the cores that multiplies a training's time. So much of it costs nothing.
_DEFAULTS = {"GOMP_SPINCOUNT": "2000"}
_POLL_S = 0.03
_MEMORY_TURNS = 5  # walking the process tree costs more than asking whether the child lives
_Process = subprocess.Popen[bytes] | Forked
_live: set[_Process] = set()
_lock = threading.Lock()
_stopping = threading.Event()


@dataclass(frozen=True)
class Limits:
    """How long and how large a child may grow.

    Attributes:
        timeout_s: wall-clock seconds.
        memory_bytes: resident memory of the child and everything it started.
        timeout_key: what sets the timeout in the recipe, empty where nothing does.
        memory_key: what sets the memory.
    """

    timeout_s: float = 900.0
    memory_bytes: int = 8 << 30
    timeout_key: str = ""
    memory_key: str = ""


@dataclass(frozen=True)
class Call:
    """One function call.

    Attributes:
        function: `module:name` of a function `(params: dict, folder: Path) -> JSON-able value`.
        params: JSON-able parameters.
        folder: where it writes its files.
        label: how errors name it.
        root: the user's project folder, when user code runs: becomes the working directory, and file reads are recorded.
        ignore: files, and folders whose files, that are not recorded.
        threads: for OpenMP and friends.
        warm: it uses PyTorch, and is forked from a process that has it loaded.
    """

    function: str
    params: Mapping[str, Any]
    folder: Path
    label: str = "step"
    root: Path | None = None
    ignore: tuple[Path, ...] = ()
    threads: int = 1
    warm: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a call: its value, and everything it depended on."""

    value: Any
    seconds: float
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


DEFAULT_LIMITS = Limits()
Watch = Callable[[str, int, int], None]


def call(request: Call, limits: Limits = DEFAULT_LIMITS, log: Path | None = None, watch: Watch | None = None) -> Outcome:
    """Run `request` in a child process and wait for it.

    Args:
        request: what to run.
        limits: when to kill it.
        log: file that everything the child prints is appended to.
        watch: called with (text, done, total) whenever the child says how far it is.

    Raises:
        EdgepressError: what the function raised on purpose, unchanged.
        LimitError: it ran past its timeout or over its memory limit.
        IsolationError: it crashed or was killed by a signal.
        OSError: a disk it writes to is full; its `filename` is on it.
    """
    if _stopping.is_set():
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory(prefix="edgepress-") as scratch:
        output = Path(scratch) / "output.txt"
        started = time.monotonic()
        try:
            with disk.writing(Path(scratch).parent):
                outcome = _run(request, limits, Path(scratch), output, watch)
        finally:
            if log is not None and output.exists():
                printed.append(log, request.label, output)
        return _outcome(request, outcome, output, time.monotonic() - started)


def kill_all() -> None:
    """End every running child at once, and let no new one start (Ctrl-C)."""
    _stopping.set()
    with _lock:
        for process in list(_live):
            _kill(process)


def _run(request: Call, limits: Limits, scratch: Path, output: Path, watch: Watch | None) -> dict[str, Any] | str:
    """The outcome the child wrote, or why there is none."""
    read_fd, write_fd = os.pipe()
    result = scratch / "result.json"
    threads = str(request.threads)
    pools = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    body = {
        "function": request.function,
        "params": request.params,
        "folder": str(request.folder),
        "root": str(request.root) if request.root else None,
        "ignore": [str(p) for p in request.ignore],
        "result": str(result),
        "environment": {**_DEFAULTS, **os.environ, **ENVIRONMENT, **pools},
        "cwd": str(request.root or scratch),
    }
    with output.open("wb") as sink:
        process = (_forked if request.warm else _started)(body, scratch / "request.json", sink.fileno(), write_fd)
    os.close(write_fd)
    with _lock:
        _live.add(process)
    try:
        reason = _wait(process, limits, read_fd, watch)
    finally:
        _kill(process)
        with _lock:
            _live.discard(process)
        os.close(read_fd)
    if _stopping.is_set():
        raise KeyboardInterrupt
    if reason is not None:
        return {"limit": reason}
    if not result.exists():
        if (place := disk.exhausted((request.folder, scratch.parent))) is not None:  # it could not even say so
            raise disk.full(place)
        return _death(process.wait())
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def _started(body: dict[str, Any], file: Path, output: int, events: int) -> _Process:
    """A child in a fresh interpreter."""
    file.write_text(json.dumps(body | {"parent": os.getpid()}))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edgepress.worker", str(file), str(events)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=body["cwd"],
        env=body["environment"],
        pass_fds=(events,),
        start_new_session=True,
    )


def _forked(body: dict[str, Any], file: Path, output: int, events: int) -> _Process:
    """A child that has PyTorch loaded already; a fresh one where that cannot be."""
    origin = server(body["environment"])
    if origin is not None:
        file.write_text(json.dumps(body | {"parent": origin.pid}))
        with contextlib.suppress(OSError):  # it was killed
            return origin.start(file, output, events)
    return _started(body, file, output, events)


def _wait(process: _Process, limits: Limits, events: int, watch: Watch | None) -> tuple[str, str] | None:
    """Until the child ends by itself (None) or has to be ended (what it did, and what to do)."""
    os.set_blocking(events, False)
    pending = b""
    deadline = time.monotonic() + limits.timeout_s
    for turn in itertools.count():
        if process.poll() is not None:
            break
        if _stopping.is_set():
            return "was interrupted", ""
        if time.monotonic() > deadline:
            return f"ran past its timeout of {limits.timeout_s:g} s", _raise(limits.timeout_key, f"{limits.timeout_s:g} s")
        used = resident_bytes(process.pid) if turn % _MEMORY_TURNS == 0 else 0
        if used > limits.memory_bytes:
            most = f"{limits.memory_bytes / 2**30:.1f} GiB"
            return f"used {used / 2**30:.1f} GiB of memory, its limit is {most}", _raise(limits.memory_key, most)
        pending = _forward(events, pending, watch)
        time.sleep(_POLL_S)
    _forward(events, pending, watch)
    return None


def _raise(key: str, value: str) -> str:
    return f"Raise `{key}` ({value}) in the recipe where the step needs more. " if key else ""


def _forward(events: int, pending: bytes, watch: Watch | None) -> bytes:
    """Hand complete progress lines to `watch`, keep the rest."""
    try:
        pending += os.read(events, 1 << 16)
    except BlockingIOError:
        return pending
    *lines, rest = pending.split(b"\n")
    if watch is not None and lines:
        last = json.loads(lines[-1])
        watch(last["text"], last["done"], last["total"])
    return rest


def _kill(process: _Process) -> None:
    """End the child, its process group, and whatever it started outside of it."""
    try:
        parent = psutil.Process(process.pid)
        for descendant in parent.children(recursive=True):
            descendant.kill()
        if process.poll() is None:
            parent.kill()
    except psutil.Error:
        pass  # already gone
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group ended with its leader
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and no result"


def _outcome(request: Call, outcome: dict[str, Any] | str, output: Path, seconds: float) -> Outcome:
    words = printed.last_lines(output)
    tail = f"Its last words: {' / '.join(words)}" if words else ""
    if isinstance(outcome, str):
        raise errors.IsolationError(f"{request.label}: the process {outcome}", "", tail or "Nothing was printed.")
    if "limit" in outcome:
        what, remedy = outcome["limit"]
        raise errors.LimitError(f"{request.label}: the process {what}", "", f"{remedy}{tail}".strip())
    if "full" in outcome:
        raise disk.full(outcome["full"])
    if "error" in outcome:
        error = outcome["error"]
        raise getattr(errors, error["kind"], errors.EdgepressError)(error["what"], error["why"], error["remedy"])
    if "memory" in outcome:
        raise errors.IsolationError(f"{request.label}: out of memory", "", "Free memory, or lower the batch.")
    if "crash" in outcome:
        crash = outcome["crash"]
        raise errors.IsolationError(
            f"{request.label}: {crash['kind']}: {crash['text'] or '(no message)'}", "", "The traceback is in log.txt."
        )
    return Outcome(
        outcome["value"], seconds, tuple(outcome["files"]), tuple(outcome["folders"]), outcome["packages"], tuple(outcome["sources"])
    )
