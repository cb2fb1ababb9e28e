"""State of a training on disk: written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepress.targets.errors import TrainingError

STATE, BEST = "checkpoint.pt", "best.pt"


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file in one step; what was there stays where that fails.

    Raises:
        TrainingError: it cannot be written, e.g. because the disk is full.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a failed write into a RuntimeError
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        cause = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)), error)
        kept = "The checkpoint before it is intact. " if path.exists() else ""
        raise TrainingError(
            f"{path} cannot be written",
            getattr(cause, "strerror", None) or str(cause).splitlines()[0],
            f"{kept}Free space there and run again: training goes on from it.",
        ) from error


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, tensors on the CPU; None where there is no file.

    Raises:
        TrainingError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and struct errors alike
        raise TrainingError(f"{path} cannot be read", str(error).splitlines()[0], "Delete it to train from the start.") from error
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Identifies names, shapes, dtypes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
