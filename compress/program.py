"""Stored programs: reading one, and exporting a rewritten graph again as the program it came from was exported."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.portable import portable

#: Larger files are not held ready: the process that holds them lasts as long as the run.
_HELD_BYTES = 256 << 20
_held: dict[tuple[Path, int, int, int], ExportedProgram] = {}


def hold(path: Path) -> None:
    """Read a program for the processes that will be forked from this one; `load_program` gives it there, once in each.

    Only one is held. Nothing happens where it is held already or its file is large.

    Raises:
        OSError: there is no such file.
    """
    key = _key(path)
    if key in _held:
        return
    _held.clear()
    if key[-1] <= _HELD_BYTES:
        _held[key] = torch.export.load(path)


def load_program(path: Path) -> ExportedProgram:
    """A saved program (.pt2), the caller's own: nobody else sees what is changed in it."""
    found = _held.pop(_key(path), None)
    return torch.export.load(path) if found is None else found


def _key(path: Path) -> tuple[Path, int, int, int]:
    status = path.stat()
    return path, status.st_ino, status.st_mtime_ns, status.st_size


def export_like(module: nn.Module, like: ExportedProgram) -> ExportedProgram:
    """Export a module with the example inputs and the dynamic batch of a program.

    Args:
        module: takes what `like` takes; its mode is kept.
        like: its example inputs are used; its batch is dynamic where it has range constraints.
    """
    inputs = tuple(like.example_inputs[0]) if like.example_inputs else ()
    axes: Any = None
    if like.range_constraints:
        each = tuple({0: Dim("batch", min=1)} for _ in inputs)
        star = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
        axes = (each,) if star else each
    with torch.no_grad():
        return portable(torch.export.export(module, inputs, dynamic_shapes=axes))
