"""Forks steps from a process that has PyTorch loaded: importing it takes longer than many a step.

The server is a fresh interpreter that imports and does nothing else, so that no thread is running when it forks. Requests come over a
socket, with the files that the child writes to; on a pipe of its own the child says its process id, and the server its exit code.

    python -P -m edgepress.forkserver SOCKET_FD
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from edgepress import tracking, worker

#: What steps with a model need; nothing of edgepress, whose loaded sources are what the result of a step depends on.
_PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "torch.export.pt2_archive._package",  # these three are what reading and exporting a program imports late
    "torch.export._trace",
    "torch._functorch.aot_autograd",
)
#: What only steps that work on a traced model need; loaded while the model is traced.
_QUANTIZER = "torchao.quantization.pt2e.quantize_pt2e"
_MESSAGE_BYTES = 4096
#: What a step's tensors free stays with its process: fresh pages for every large tensor take longer than many an operator.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
#: New objects before the collector looks for cycles among them. Tracing makes objects by the hundred thousand, nearly all of which stay.
_YOUNG_OBJECTS = 10_000
#: Set before Python starts, or not at all.
_FIXED = ("PYTHONPATH", "PYTHONHASHSEED", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")
#: A look at the GPUs through CUDA itself, while PyTorch loads, would keep every child from using them (notes on torch.cuda.is_available).
_UNPOISONED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class Forked:
    """A child that the server forked; to be polled, waited for and killed like a `subprocess.Popen`.

    Args:
        status: read end of the pipe on which the server writes its process id, and its exit code once it has ended.
        origin: the server, which lasts as long as anybody holds it.

    Attributes:
        pid: of the child, which leads a process group of its own.
        returncode: None while it runs; the negative number of the signal that killed it.

    Raises:
        OSError: the server is gone.
    """

    def __init__(self, status: int, origin: ForkServer) -> None:
        self._origin = origin
        self._status, self._said = open(status, "rb", buffering=0), b""  # noqa: SIM115 - closed at its end
        self.returncode: int | None = None
        while b"\n" not in self._said:
            if not self._read():
                raise ConnectionError("the fork server is gone")
        self.pid = int(self._said.partition(b"\n")[0])
        os.set_blocking(status, False)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        while self.returncode is None and self._read():
            pass
        return self.returncode

    def wait(self) -> int:
        """The exit code, once there is one."""
        while self.poll() is None:
            select.select([self._status], [], [])
        assert self.returncode is not None
        return self.returncode

    def _read(self) -> bool:
        """Take in what the pipe has; False where it has nothing, or has ended: with the exit code, or with the server's end."""
        piece = self._status.read(64)
        if piece == b"":
            code = self._said.partition(b"\n")[2]
            self.returncode = int(code) if code else -signal.SIGKILL
            self._status.close()
        self._said += piece or b""
        return bool(piece)


class ForkServer:
    """A server for steps with one environment of variables that Python reads as it starts.

    It ends with this process, or once neither a child nor anybody else holds it.

    Args:
        environment: of the server.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._fixed = _fixed(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgepress.forkserver", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**_KEPT_MEMORY, **environment, **_UNPOISONED},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        weakref.finalize(self, _end, self._socket, self._process)

    @property
    def pid(self) -> int:
        """Of the server, the parent of what it forks."""
        return self._process.pid

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Is it alive, and would a new interpreter in `environment` start like it?"""
        return self._process.poll() is None and _fixed(environment) == self._fixed

    def start(self, request: Path, output: int, events: int) -> Forked:
        """Fork a child.

        Args:
            request: file of `edgepress.worker`; its `events_fd` is another number in the child.
            output: descriptor that the child prints to.
            events: descriptor that it writes its progress to.

        Raises:
            OSError: the server is gone.
        """
        read, write = os.pipe()
        try:
            socket.send_fds(self._socket, [str(request).encode()], [output, events, write])
        except OSError:
            os.close(read)
            self._process.wait()
            raise
        finally:
            os.close(write)
        try:
            return Forked(read, self)
        except OSError:
            self._process.wait()
            raise


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in _FIXED if name in environment}


_server: ForkServer | None = None
_lock = threading.Lock()


def server(environment: Mapping[str, str]) -> ForkServer | None:
    """The server of this process for an environment; None where the platform has none."""
    global _server
    if sys.platform != "linux":  # frameworks of other systems do not survive a fork
        return None
    with _lock:
        if _server is None or not _server.serves(environment):
            _server = ForkServer(environment)
        return _server


def main() -> None:
    """Serve until the other end of the socket is closed."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # what modules make stays: looking through it again and again takes a fifth of the time that loading them takes
    for name in _PRELOADED:
        _load(name)
    tracking.owners()  # kept, for all children
    gc.freeze()  # a collection in a child would touch, and so copy, every page that it shares
    gc.set_threshold(_YOUNG_OBJECTS)
    gc.enable()
    ended, wake = os.pipe()
    for end in (ended, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    children: dict[int, int] = {}
    chores: dict[str, Callable[[], None]] = {_QUANTIZER: partial(_load, _QUANTIZER), "torch": _warm}
    held: Path | None = None
    while True:
        ready, _, _ = select.select([connection.fileno(), ended], [], [], 0 if chores and children else None)
        if not ready:  # a child runs: later ones will start faster
            with contextlib.suppress(Exception):
                chores.pop(next(iter(chores)))()
            gc.freeze()
        if ended in ready:
            os.read(ended, _MESSAGE_BYTES)
        _reap(children)
        if connection.fileno() in ready:
            request, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
            if not request:
                return
            output, events, status = descriptors
            model = _model(Path(request.decode()))
            if model is not None and _QUANTIZER in chores:
                chores.pop(_QUANTIZER)()
                gc.freeze()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (connection.detach(), ended, wake, status, *children.values()):
                    os.close(inherited)
                _become(Path(request.decode()), output, events)
            os.write(status, f"{pid}\n".encode())
            children[pid] = status
            os.close(output)
            os.close(events)
            if model not in (None, held):
                chores["model"], held = partial(_hold, model), model


def _load(module: str) -> None:
    with contextlib.suppress(Exception):  # a step that needs it says what is wrong with it
        importlib.import_module(module)


def _warm() -> None:
    """Trace, save and load a program of one operator: what PyTorch imports and caches on the way, children need not do again."""
    import torch

    torch.set_num_threads(1)  # a fork would lose the others
    rows = torch.export.Dim.DYNAMIC
    program = torch.export.export(torch.nn.ReLU().eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: rows},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.export.load(file).module(check_guards=False)


def _model(request: Path) -> Path | None:
    """What a child will work on, and the next ones; None where it works on no model."""
    try:
        return Path(json.loads(request.read_text())["params"]["inputs"]["model"]) / "model.pt2"
    except (OSError, ValueError, KeyError, TypeError):  # whoever asked has gone, or there is none
        return None


def _hold(model: Path) -> None:
    """Read a model for the children to come; leaves no thread behind."""
    from edgepress.compress.program import hold

    gc.unfreeze()  # the graph of the model before is a cycle of references
    hold(model)
    gc.collect()


def _reap(children: dict[int, int]) -> None:
    """Say the exit codes of children that have ended."""
    while children:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        status = children.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
        os.close(status)


def _become(request: Path, output: int, events: int) -> NoReturn:
    """Be the worker of a request, in a session of its own, as if it had been started for it."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(output)
    try:
        worker.serve(request, events)
    finally:
        os._exit(1)  # what it raised must not reach the server's loop


if __name__ == "__main__":
    main()
