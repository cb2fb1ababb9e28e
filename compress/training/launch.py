"""More processes of the same training on this machine.

    python -P -m edgepress.compress.training.launch

is such a process; what it has to do comes through its standard input, which its parent holds open as long as it lives.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress.targets.errors import EdgepressError, TrainingError
from edgepress.targets.progress import progress

if TYPE_CHECKING:
    from edgepress.compress.training.config import TrainConfig

#: In a process that was started here: its folder.
_FOLDER = "EDGEPRESS_TRAINING_PROCESS"
_READY, _ERROR = "ready", "error.json"
_HOST = "127.0.0.1"
#: The others load what this process has loaded already: they may take this much, and at least so many seconds.
_SLOWER, _JOIN_S = 4.0, 120.0
_POLL_S = 0.05
#: Where one process fails, the others see a closed connection at about the same time.
_GRACE_S = 3.0


@contextmanager
def together(config: TrainConfig, function: str, params: Mapping[str, Any]) -> Iterator[None]:
    """With `devices: N` in a single process, `train` within the context is a training of N processes, of which this is the first.

    The others call `function`, which is expected to make the same module, data and objective, and to come to the same `train`. They talk
    over the loopback device (gloo, on GPUs NCCL), share the threads of this one on the CPU, and end with it, however it ends. What they
    return is dropped.

    Nothing happens where one process is asked for, where others were started from outside (torchrun), or in one of those started here.

    Args:
        config: of the training.
        function: `module:name` of a function `(params, folder)`; the others get a folder of their own.
        params: JSON-able.

    Raises:
        TrainingError: there are fewer GPUs, or one of the others failed: its error, or how it died.
    """
    count = config.devices if isinstance(config.devices, int) else 1
    if count == 1 or config.nodes > 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    global _crew
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder, _threads_shared(count) as threads:
        shared = {**_meeting_point(count), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with _environment({**shared, "RANK": "0", "LOCAL_RANK": "0"}):
            _crew = _Crew(count, Path(folder), function, params)
            try:
                yield
            except RuntimeError as error:
                raise _crew.blamed(error) from error
            finally:
                _crew.end()
                _crew = None
                _disconnect()


def meet() -> None:
    """Wait until all processes are about to connect; returns at once in processes that `together` has nothing to do with.

    Raises:
        TrainingError: one of the others failed, or takes far too long.
    """
    if _crew is not None:
        _crew.wait()
    elif _FOLDER in os.environ:
        (Path(os.environ[_FOLDER]) / _READY).touch()


def launched() -> bool:
    """Is this one of the processes of `together`, the first included?"""
    return _crew is not None or follows()


def follows() -> bool:
    """Is this one of the further processes that `together` started?"""
    return _FOLDER in os.environ


class _Crew:
    """The processes besides the first."""

    def __init__(self, count: int, folder: Path, function: str, params: Mapping[str, Any]) -> None:
        self._count, self._started = count, time.monotonic()
        self._folders = [folder / str(rank) for rank in range(1, count)]
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank, own in enumerate(self._folders, 1):
            own.mkdir()
            environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), _FOLDER: str(own)}
            command = [sys.executable, "-P", "-m", __name__]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            self._processes.append(process)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # it died already, which `wait` reports
                    process.stdin.write(json.dumps({"function": function, "params": params, "folder": str(own / "files")}).encode() + b"\n")
                    process.stdin.flush()

    def wait(self) -> None:
        """Until all are ready."""
        import psutil

        limit = max(_JOIN_S, _SLOWER * (time.time() - psutil.Process().create_time()))
        while missing := [own for own in self._folders if not (own / _READY).exists()]:
            if failure := self._failure():
                raise failure
            if time.monotonic() - self._started > limit:
                raise TrainingError(
                    f"process {missing[0].name} of {self._count} is not ready after {limit:.0f} s", "", "Use fewer devices."
                )
            progress("training: waiting for the other processes")
            time.sleep(_POLL_S)

    def blamed(self, error: RuntimeError) -> Exception:
        """The error of another process where this one only saw that the connection broke, else the error itself."""
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            if failure := self._failure():
                return error if failure.what.endswith(str(error)) else failure
            time.sleep(_POLL_S)
        return error

    def end(self) -> None:
        """Kill what still runs: the first process has the result, or there is none."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    def _failure(self) -> TrainingError | None:
        for process, own in zip(self._processes, self._folders, strict=True):
            code = process.poll()
            who = f"process {own.name} of {self._count}"
            if (own / _ERROR).exists():
                found = json.loads((own / _ERROR).read_text())
                return TrainingError(f"{who}: {found['what']}", found["why"], found["remedy"])
            if code is not None and not (own / _READY).exists() and code == 0:
                return TrainingError(f"{who} ended without training", "", "It must call the same `train` as the first.")
            if code:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return TrainingError(
                    f"{who} {how}", "", "Run again: training goes on from its checkpoint; with fewer devices it takes less memory."
                )
        return None


_crew: _Crew | None = None


def main() -> None:
    """Be one of the further processes."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    error = Path(os.environ[_FOLDER]) / _ERROR
    module, _, name = request["function"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(request["params"], Path(request["folder"]))
    except EdgepressError as found:
        _write(error, found.what, found.why, found.remedy)
    except BaseException as found:  # whatever the user's code raises: the first process says it
        traceback.print_exc()
        _write(error, f"{type(found).__name__}: {found}", "", "The traceback is in the log.")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(error.exists()))


def _write(path: Path, what: str, why: str, remedy: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"what": what, "why": why, "remedy": remedy}))
    new.replace(path)


def _end_with_parent() -> None:
    """Standard input ends when nobody is left to hold it.

    Past `sys.stdin`, whose lock this thread would hold for ever: a process that is forked meanwhile, as the workers of a `DataLoader` are,
    closes it first and would wait for the lock.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


def _meeting_point(count: int) -> dict[str, str]:
    """The environment that torch.distributed and Fabric read, but for the rank."""
    import psutil

    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    found = {"MASTER_ADDR": _HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}
    loopback = [name for name, addresses in psutil.net_if_addrs().items() if any(each.address == _HOST for each in addresses)]
    return {**found, "GLOO_SOCKET_IFNAME": loopback[0]} if loopback else found


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _threads_shared(count: int) -> Iterator[int]:
    """This process with its share of its threads; gives how many that is."""
    import torch

    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < count:
        raise TrainingError(
            f"devices is {count}", f"this machine has {gpus} GPU{'s' if gpus > 1 else ''}", "Ask for no more than there are."
        )
    threads = torch.get_num_threads()
    share = threads if torch.cuda.is_available() else max(1, threads // count)
    torch.set_num_threads(share)
    try:
        yield share
    finally:
        torch.set_num_threads(threads)


def _disconnect() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
