"""Stored programs: reading one, and exporting a rewritten graph again as the program it came from was exported."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

#: Larger files are not held ready: the process that holds them lasts as long as the run.
_HELD_BYTES = 256 << 20
#: Pools that average, and may have windows larger than their input -> over how many dimensions.
_AVERAGES = {torch.ops.aten.avg_pool1d.default: 1, torch.ops.aten.avg_pool2d.default: 2}
#: Second names of operators, with the same overloads and arguments -> the first.
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "subtract": "sub",
    "true_divide": "div",
}
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


def portable(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place to what runs elsewhere too, with the same values.

    Tracing writes a reshape as a view where the strides it saw allow one. Kernels choose strides of their own: that of attention with a
    mask gives others as soon as gradients are asked for. Such views become reshapes. An average over a window larger than its input,
    which `ceil_mode` allows and other frameworks refuse, becomes a mean. Second names of operators become the first.
    """
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _first_name(node.target)
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        elif node.target in _AVERAGES and _exceeds_its_input(node):
            axes = list(range(-len(_windows(node)), 0))
            node.target, node.args, node.kwargs = torch.ops.aten.mean.dim, (node.args[0], axes, True), {}
    program.graph_module.recompile()
    return program


def _first_name(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    name = op._opname.removesuffix("_")
    if op.namespace != "aten" or name not in _ALIASES:
        return op
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, op._opname.replace(name, _ALIASES[name])), op._overloadname)
    return found


def _windows(node: Node) -> list[int]:
    size = node.args[1]
    return list(size) * (_AVERAGES[node.target] // len(size)) if isinstance(size, list | tuple) else [size] * _AVERAGES[node.target]


def _exceeds_its_input(node: Node) -> bool:
    """Has a pool one window, which covers all of a known extent and more?"""
    windows, kept = _windows(node), node.args[3] if len(node.args) > 3 else 0
    extents, results = (value.meta["val"].shape[-len(windows) :] for value in (node.args[0], node))
    divided = node.kwargs.get("divisor_override") if len(node.args) < 7 else node.args[6]
    if not all(isinstance(extent, int) for extent in extents) or any(result != 1 for result in results):
        return False
    padded = any(kept) if isinstance(kept, list | tuple) else bool(kept)
    pairs = list(zip(windows, extents, strict=True))
    return not padded and divided is None and all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
