"""A disk that is full: noticed however it shows, and named by a path on it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: What to do about it.
FREE_SPACE = (
    "Free space there, or write elsewhere (--out for runs, EDGEPRESS_STORE for results of steps, TMPDIR for what is temporary); "
    "finished steps are stored."
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Libraries that write by themselves raise their own errors around the system's words.
_WORDS = tuple(os.strerror(number) for number in _FULL)
#: With less free, a failure is the disk's: nothing of a step's size can be written.
_NOTHING_BYTES = 64 << 10


def is_full(error: OSError) -> bool:
    """Does the system say that there is no room?"""
    return error.errno in _FULL


def place_of(error: OSError) -> str | None:
    """The file that could not be written: of a copy its destination, which the system names second."""
    name = error.filename2 or error.filename
    return None if name is None else os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def filled(error: BaseException, folders: Sequence[Path]) -> str | None:
    """A path on the full disk that an error is due to; None where it has another cause.

    Args:
        error: what a step raised, with what caused it.
        folders: where the step writes.
    """
    least = min(folders, key=_free_bytes)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_full(cause):
            return place_of(cause) or str(least)
        if any(words in str(cause) for words in _WORDS):
            return str(least)
        cause = cause.__cause__ or cause.__context__
    return exhausted(folders)


def exhausted(folders: Sequence[Path]) -> str | None:
    """The first folder on a disk with no room at all."""
    return next((str(folder) for folder in folders if _free_bytes(folder) < _NOTHING_BYTES), None)


def full(path: str) -> OSError:
    """The system's error of a full disk, for a path on it."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written in here is at `path`: a write that fails for want of room names no file itself.

    Raises:
        OSError: the disk is full; it names a path on it.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error) and not any(words in str(error) for words in _WORDS):  # shutil collects those of a folder as text
            raise
        raise full(place_of(error) or str(path)) from error


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
