"""Exporting a rewritten graph again, as the program it came from was exported."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram


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
        return torch.export.export(module, inputs, dynamic_shapes=axes)
