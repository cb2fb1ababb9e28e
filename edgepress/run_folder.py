"""The folder of a run: reserved before the first step, written aside, and put in its place whole."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgepress.targets.errors import ConfigError

RUNS = "runs"
#: Beside the runs: a link to the newest one.
LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """Where a run goes.

    Attributes:
        place: its folder, once it is finished.
        staging: an empty folder beside it, on the same file system, to write the run into.
        newest: `latest` will point to it.
    """

    place: Path
    staging: Path
    newest: bool

    def publish(self) -> None:
        """Put the finished run in its place; an older one there goes only once the new one is whole."""
        old = self.staging.with_suffix(".old")
        if self.place.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.place.rename(old)
        try:
            self.staging.rename(self.place)
        except BaseException:
            if old.exists() and not self.place.exists():
                old.rename(self.place)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if self.newest:
            partial = self.place.with_name(f".{LATEST}.{os.getpid()}")
            partial.unlink(missing_ok=True)
            partial.symlink_to(self.place.name)
            partial.replace(self.place.with_name(LATEST))


@contextmanager
def reserved(out: Path | None, started: datetime) -> Iterator[RunFolder]:
    """Reserve the folder of a run; what was written and not published is removed.

    Args:
        out: the folder asked for; an older run there is replaced. None for `runs/<time>`, with a number where another run has that name.
        started: when the run began.

    Raises:
        ConfigError: the folder cannot be written, or holds something that is not a run.
    """
    place = out.absolute() if out else Path(RUNS, started.strftime("%Y%m%d-%H%M%S")).absolute()
    if out:
        _check(place)
    elif (link := place.with_name(LATEST)).is_dir() and not link.is_symlink():
        raise ConfigError(f"{str(link)!r} is a folder", "it should be a link to the newest run", "Rename it.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = _replacing(place) if out else _beside_others(place)
    except OSError as error:
        asked = f"--out {str(place)!r}" if out else f"the folder of runs {str(place.parent)!r}"
        why = f"{str(place.parent)!r}, which a run is written into: {error.strerror}"
        raise ConfigError(f"{asked} cannot be written", why, "Name a folder that can be, with --out.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder.staging, ignore_errors=True)


def _check(place: Path) -> None:
    newest = place == Path(RUNS, LATEST).absolute()
    if place.is_symlink() or newest:
        why = "it is the name of the link to the newest run" if newest else "a run would replace the link, not what it points to"
        raise ConfigError(f"--out {str(place)!r} cannot be the folder of a run", why, "Name the folder itself, or leave --out away.")
    if place.is_mount():
        raise ConfigError(f"--out {str(place)!r} is a mount point", "a run replaces its folder as a whole", "Name a folder in it.")
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / "report.json").is_file()):
        raise ConfigError(f"--out {str(place)!r} is not a run and not empty", "it would be replaced", "Name a new folder.")


def _replacing(place: Path) -> RunFolder:
    staging = place.with_name(f".{place.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # a killed run's, of the same number: in a container every run has it
    staging.mkdir()
    return RunFolder(place, staging, newest=False)


def _beside_others(first: Path) -> RunFolder:
    """The first free name: whoever makes the staging folder has it."""
    for number in itertools.count(1):
        place = first if number == 1 else first.with_name(f"{first.name}-{number}")
        staging = place.with_name(f".{place.name}.partial")
        try:
            staging.mkdir()
        except FileExistsError:
            continue
        if not place.exists():
            return RunFolder(place, staging, newest=True)
        staging.rmdir()
    raise AssertionError("unreachable")
