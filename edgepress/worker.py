"""The child side of `edgepress.isolate`: run one function, write what came of it, leave.

    python -P -m edgepress.worker REQUEST.json EVENTS_FD

REQUEST.json names the function, its parameters, the folder it may write into, its surroundings and the file for its outcome. Nothing is
read from standard output, so a converter may print what it likes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from edgepress import disk, tracking
from edgepress.targets import progress
from edgepress.targets.errors import EdgepressError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the request named on the command line."""
    serve(Path(sys.argv[1]), int(sys.argv[2]))


def serve(file: Path, events: int) -> NoReturn:
    """Run a request; the process always ends with exit code 0 unless it crashes.

    Args:
        file: the request.
        events: descriptor that progress is written to.
    """
    request = json.loads(file.read_text())
    _die_with_parent(request["parent"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if "torch" in sys.modules:  # a fork of a process that has loaded it, for some other number of threads
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _send_progress(events)
    folder = Path(request["folder"])
    sys.dont_write_bytecode = True
    tracker = tracking.FileTracker(Path(request["root"]), (folder, *map(Path, request["ignore"]))) if request["root"] else None
    outcome = _outcome(request, folder)
    files, folders = tracker.stop() if tracker else ([], [])
    outcome |= {"files": files, "folders": folders, "packages": tracking.loaded_packages(), "sources": tracking.loaded_sources()}
    result = Path(request["result"])
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(outcome))
    partial.replace(result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some runtimes crash in their own teardown, after everything is done


def _outcome(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(request["params"], folder)
        return {"value": json.loads(json.dumps(value, allow_nan=False))}
    except BaseException as error:  # whatever user code or a converter raises becomes this step's recorded failure
        if (place := disk.filled(error, (folder, Path(tempfile.gettempdir())))) is not None:
            traceback.print_exc()
            return {"full": place}
        return _failure(error)


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, EdgepressError):
        return {"error": {"kind": type(error).__name__, "what": error.what, "why": error.why, "remedy": error.remedy}}
    if isinstance(error, MemoryError):
        return {"memory": True}
    traceback.print_exc()
    return {"crash": {"kind": type(error).__name__, "text": str(error)[:2000], "traceback": traceback.format_exc()[-8000:]}}


def _die_with_parent(parent: int) -> None:
    """A parent that is killed with -9 takes its children along (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        with contextlib.suppress(OSError):  # only a hint to the kernel: take this process, not the one that watches it
            Path("/proc/self/oom_score_adj").write_text("800")


def _send_progress(fd: int) -> None:
    def send(text: str, done: int, total: int) -> None:
        line = json.dumps({"text": text, "done": done, "total": total}) + "\n"
        try:
            os.write(fd, line.encode())
        except OSError:
            progress.watch(lambda *_: None)

    progress.watch(send)


if __name__ == "__main__":
    main()
