"""Converters that misbehave, as test doubles: plain functions for `isolate.call`, exporters and runtimes registered as a third party's.

`install` writes the metadata of a package that brings them; with it on PYTHONPATH every child process finds them by name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.base import Exporter, ExportRequest
from edgepress.targets.catalog import CatalogEntry
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import Artifact, Signature, Support, TensorSpec
from edgepress.targets.rules import QuantRules

#: Environment variable: a file that faults append the ids of their processes to.
PIDS = "EDGEPRESS_TEST_PIDS"

CHUNK_BYTES = 64 << 20
GARBAGE = b'{"value": 1}\n\x00\xff\xfe\x1b[31m not text \xc3\x28\n' * 2000


def note(*pids: int) -> None:
    """Remember processes, so that a test can see that they are gone."""
    if os.environ.get(PIDS):
        with Path(os.environ[PIDS]).open("a") as file:
            file.write("".join(f"{pid}\n" for pid in (os.getpid(), *pids)))


def half_written(folder: Path) -> None:
    """Leave half a file behind, as a converter that dies while writing does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "half-written.bin").write_bytes(b"\x00" * 1000)


def exits(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Ends the process without a word, a child of its own still running."""
    half_written(folder)
    note(subprocess.Popen(["sleep", "300"]).pid)
    os._exit(7)


def segfaults(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Reads address 0."""
    half_written(folder)
    note()
    ctypes.string_at(0)
    return {}


def hangs(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Never returns, deaf to polite signals, with a child in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    half_written(folder)
    note(subprocess.Popen(["sleep", "300"], start_new_session=True).pid)
    while True:
        time.sleep(60)


def eats_memory(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Asks for 30 GB and touches every page, a chunk at a time."""
    half_written(folder)
    note()
    held = []
    while len(held) * CHUNK_BYTES < 30e9:
        held.append(np.ones(CHUNK_BYTES, np.uint8))
        time.sleep(0.02)
    return {}


def prints_garbage(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes binary noise to file descriptors 1 and 2, and then does its work."""
    for descriptor in (1, 2):
        os.write(descriptor, GARBAGE)
    print("\ud800", file=open(1, "w", errors="surrogatepass", closefd=False))  # noqa: SIM115
    return {"made": True}


def looks_around(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a step finds about itself."""
    import torch

    return {
        "day": os.environ["OF_THE_DAY"],
        "variables": sorted(set(os.environ) - {"OLDPWD", "LC_CTYPE"}),
        "folder": str(Path.cwd()),
        "path": [entry for entry in sys.path if not entry.startswith(str(Path.cwd()))],
        "threads": torch.get_num_threads(),
        "input": sys.stdin.read(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE)],
        "leads": os.getpid() == os.getsid(0),
        "files": len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0,  # noqa: PTH208
    }


def copies_to_a_full_disk(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fails as shutil does when the destination has no room."""
    number = errno.ENOSPC
    raise OSError(number, os.strerror(number), "source.bin", None, str(folder / "destination.bin"))


def writes_by_a_library(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fails as a library does that writes by itself and has errors of its own."""
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


class NotAnException(BaseException):
    """What some bindings raise: not an Exception."""


def raises_foreign(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Raises something that is no Exception."""
    half_written(folder)
    raise NotAnException("code 0x7f\nsecond line")


def exits_politely(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Calls sys.exit(0), as command-line tools turned libraries do."""
    sys.exit(0)


class _Faulty(Exporter):
    """Common to all: usable, float or static int8, and outputs of zeros."""

    rules = QuantRules("fault", "int8", True, -127, 127, frozenset({"linear"}), ("fp32", "int8"), ("static",))  # type: ignore[assignment]

    def supports(self) -> Support:
        return Support(True, "1")

    def compressed_outputs(self, request: ExportRequest, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], str]:
        return [np.zeros((len(inputs[0]), 1), np.float32) for _ in request.signature.outputs], "nothing"

    def made(self, request: ExportRequest, folder: Path) -> Artifact:
        (folder / "model.bin").write_bytes(b"model")
        return Artifact("model.bin", request.target.name, request.scheme, request.signature)


class Exits(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        exits({}, folder)
        raise AssertionError("unreachable")


class Segfaults(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        segfaults({}, folder)
        raise AssertionError("unreachable")


class Hangs(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        hangs({}, folder)
        raise AssertionError("unreachable")


class EatsMemory(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        eats_memory({}, folder)
        raise AssertionError("unreachable")


class PrintsGarbage(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        prints_garbage({}, folder)
        return self.made(request, folder)


class RaisesForeign(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        half_written(folder)
        raise ZeroDivisionError("in pass 'fold_everything'\nwith a second line")


class WritesNothing(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        return Artifact("model.bin", request.target.name, request.scheme, request.signature)


class Renames(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        renamed = tuple(TensorSpec(f"{s.name}_0", s.dtype, s.shape) for s in request.signature.inputs)
        artifact = self.made(request, folder)
        return Artifact(artifact.path, artifact.target, artifact.scheme, Signature(renamed, request.signature.outputs))


class Refuses(_Faulty):
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        raise ExportError(f"target {request.target.name!r} has no op 'frobnicate'", "in model.py line 3", "Rewrite it.")


EXPORTERS = {
    "exits": Exits,
    "segfaults": Segfaults,
    "hangs": Hangs,
    "eats-memory": EatsMemory,
    "prints-garbage": PrintsGarbage,
    "raises-foreign": RaisesForeign,
    "writes-nothing": WritesNothing,
    "renames": Renames,
    "refuses": Refuses,
}
RULES = _Faulty.rules


def __getattr__(name: str) -> CatalogEntry:
    """`TARGET_exits` and so on: one catalog entry per fault."""
    fault = name.removeprefix("TARGET_").replace("_", "-")
    if not name.startswith("TARGET_") or fault not in EXPORTERS:
        raise AttributeError(name)
    return CatalogEntry(fault, fault, "nowhere", ".bin", precision="fp32")


def install(folder: Path) -> dict[str, str]:
    """Write the metadata of a package that registers every fault as exporter, rules and target.

    Returns:
        Environment variables under which child processes find it.
    """
    here = Path(__file__).resolve()
    info = folder / "edgepress_faults-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgepress-faults\nVersion: 1.0\n")
    lines = ["[edgepress.exporters]", *(f"{name} = tests.faults:{cls.__name__}" for name, cls in EXPORTERS.items())]
    lines += ["[edgepress.rules]", *(f"{name} = tests.faults:RULES" for name in EXPORTERS)]
    lines += ["[edgepress.targets]", *(f"{name} = tests.faults:TARGET_{name.replace('-', '_')}" for name in EXPORTERS)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join([str(folder), str(here.parent.parent), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path.rstrip(os.pathsep)}
