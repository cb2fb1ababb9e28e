"""`edgepress init`: starter projects, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from edgepress.config_yaml import nearest
from edgepress.targets.errors import ConfigError

#: Complete projects that `--example` may name.
EXAMPLES = ("digits",)


def write_starter(folder: Path, example: str | None = None) -> list[Path]:
    """Write a starter project; `folder` is made if needed and may hold other files.

    Args:
        folder: where.
        example: one of `EXAMPLES`, or None for a template to fill in.

    Returns:
        The files written, sorted.

    Raises:
        ConfigError: unknown example, a file of that name is there already (all are listed, nothing is written), or the folder
            cannot be written.
    """
    if example is not None and example not in EXAMPLES:
        raise ConfigError(f"unknown example {example!r}", remedy=nearest(example, list(EXAMPLES)))
    source = Path(__file__).parent / (example or "template")
    files = sorted(p for p in source.iterdir() if p.is_file())
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", remedy="Name a folder.")
    there = [f.name for f in files if os.path.lexists(folder / f.name)]
    if there:
        raise ConfigError(f"{folder} already has {', '.join(there)}", "nothing was written", "Name another folder, or move these files.")
    try:
        return _place(files, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written", error.strerror or str(error), "Name a folder you can write to.") from None


def _place(files: list[Path], folder: Path) -> list[Path]:
    """Copy beside, then rename into place; take back what was placed when anything fails."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    staging = None
    placed: list[Path] = []
    try:
        staging = Path(tempfile.mkdtemp(prefix=".edgepress-init-", dir=folder))
        for file in files:
            shutil.copyfile(file, staging / file.name)
        for file in files:
            (staging / file.name).rename(folder / file.name)
            placed.append(folder / file.name)
    except OSError:
        for path in placed:
            path.unlink(missing_ok=True)
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(staging)
    return placed
