"""Which files, folders, packages and edgepress modules a process used: what a cached result depends on."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import FrameType
from typing import Any

_IN_OPEN = 0x20
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000
_MOST_FOLDERS = 2000
#: Folders in a store of steps (`store.py`), wherever it lies.
_STORE = {"objects", "steps"}


class FileTracker:
    """Records every file that is opened for reading, and every folder that is listed, from its creation on.

    Python's own opens come from the audit hook (PEP 578); opens by compiled code (a tokenizer in Rust, an image decoder in C) are
    seen by inotify on Linux for everything below `root`.

    Args:
        root: the user's project folder.
        ignore: files, and folders whose files, that do not count (the step's own output).
    """

    def __init__(self, root: Path, ignore: tuple[Path, ...] = ()) -> None:
        self._root = root.resolve()
        self._files: set[str] = set()
        self._folders: set[str] = set()
        installed = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(p for p in sys.path if "site-packages" in p)}
        code = Path(__file__).resolve().parent.parent
        ours = [str(code / name) for name in ("edgepress", "compress", "exporters", "validators", "targets")]
        system = ["/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/run"]
        self._ignored = tuple(f"{Path(p).resolve()}{os.sep}" for p in (*installed, *ours, *system, *map(str, ignore)))
        self._watches: dict[int, str] = {}
        self._inotify = self._watch_folders()
        self._active = True
        sys.addaudithook(self._hook)

    def stop(self) -> tuple[list[str], list[str]]:
        """End the recording.

        Returns:
            Absolute paths of the files read and of the folders listed, sorted.
        """
        self._active = False
        self._drain()
        files = {os.path.realpath(f) for f in self._files}
        folders = {os.path.realpath(f) for f in self._folders}
        return sorted(f for f in files if self._counts(f) and Path(f).is_file()), sorted(f for f in folders if self._below_root(f))

    def _counts(self, path: str) -> bool:
        return not f"{path}{os.sep}".startswith(self._ignored) and f"{os.sep}__pycache__{os.sep}" not in path

    def _below_root(self, path: str) -> bool:
        return Path(path).is_dir() and Path(path).is_relative_to(self._root) and self._counts(path + os.sep)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR):
                self._files.add(os.path.abspath(os.fsdecode(args[0])))  # noqa: PTH100 - runs inside every open()
        elif event in ("os.listdir", "os.scandir") and isinstance(args[0], str | bytes | os.PathLike) and not _importing(sys._getframe()):
            self._folders.add(os.path.abspath(os.fsdecode(args[0])))  # noqa: PTH100

    def _watch_folders(self) -> int | None:
        if sys.platform != "linux":
            return None
        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if fd < 0:
            return None
        for count, (folder, names, _) in enumerate(os.walk(self._root)):
            names[:] = [n for n in names if not n.startswith(".") and n not in ("runs", "__pycache__", "node_modules")]
            if set(names) >= _STORE:  # another run may work there just now
                names.clear()
                continue
            if count >= _MOST_FOLDERS:
                break
            watch = libc.inotify_add_watch(fd, os.fsencode(folder), _IN_OPEN)
            if watch >= 0:
                self._watches[watch] = folder
        return fd

    def _drain(self) -> None:
        if self._inotify is None:
            return
        while True:
            try:
                data = os.read(self._inotify, 1 << 20)
            except BlockingIOError:
                break
            offset = 0
            while offset < len(data):
                watch, _mask, _cookie, length = struct.unpack_from("iIII", data, offset)
                name = data[offset + 16 : offset + 16 + length].rstrip(b"\0")
                if name and watch in self._watches:
                    self._files.add(os.path.join(self._watches[watch], os.fsdecode(name)))  # noqa: PTH118
                offset += 16 + length
        os.close(self._inotify)


def _importing(frame: FrameType | None) -> bool:
    """Does the import system list this folder? It looks into every folder of sys.path, which says nothing about data."""
    caller = frame.f_back if frame else None
    return bool(caller and str(caller.f_globals.get("__name__", "")).startswith("importlib"))


@cache
def owners() -> Mapping[str, list[str]]:
    """Top-level module -> distributions that install it; reading them all takes longer than a short step."""
    return packages_distributions()


def loaded_packages() -> dict[str, str]:
    """Distribution name -> version of everything imported in this process, edgepress itself left out (its sources are hashed)."""
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    names = {owner for top in tops for owner in owners().get(top, ()) if owner != "edgepress"}
    return {name: version(name) for name in sorted(names)}


def loaded_sources() -> list[str]:
    """Files of edgepress's own modules imported in this process: the code version of a step."""
    files = {m.__file__ for name, m in list(sys.modules.items()) if name.partition(".")[0] == "edgepress" and getattr(m, "__file__", None)}
    return sorted(os.path.realpath(f) for f in files if f)
