"""What the other processes do in tests of their start and end, without torch."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from edgepress.compress.training import launch
from edgepress.targets.errors import ProjectError


def refuse(params: dict[str, Any], _: Path) -> None:
    raise ProjectError("no such data", "it moved", "Look for it.")


def crash(params: dict[str, Any], _: Path) -> None:
    raise ValueError("seven")


def leave(params: dict[str, Any], _: Path) -> None:
    """Never meets the others."""


def stay(params: dict[str, Any], _: Path) -> None:
    """Says who it is, and stays as long as it may."""
    new = Path(params["pid"]).with_suffix(".new")
    new.write_text(f"{os.getpid()} {os.environ['RANK']} {os.environ['WORLD_SIZE']} {os.environ['OMP_NUM_THREADS']} {launch.follows()}")
    new.replace(params["pid"])
    launch.meet()
    time.sleep(60)


def fork(params: dict[str, Any], _: Path) -> None:
    """Has a process of its own, as a `DataLoader` has, write a file."""
    time.sleep(0.5)  # until what watches for the parent's end does
    child = multiprocessing.get_context("fork").Process(target=Path(params["file"]).touch, daemon=True)
    child.start()
    child.join(20)
    launch.meet()
