"""From a module to an ExportedProgram with positional inputs, flat outputs and a dynamic batch, checked against the module."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.portable import portable
from edgepress.compress.project.outputs import FlatOutputs, check_batched, flatten, is_flat, largest_error, output_names
from edgepress.compress.project.usercode import user_error, user_line
from edgepress.targets.errors import ProjectError
from edgepress.targets.nouns import Signature, TensorSpec

#: Relative differences up to this size come from another order of float32 sums.
TOLERANCE = 1e-3
_STATIC = "Take the batch size from `x.shape[0]` without `int()`, use -1 in reshape, or set `model.dynamic_batch: false`."


@dataclass(frozen=True)
class TraceOptions:
    """What the recipe says about a model's boundary.

    Attributes:
        inputs: a name per input, or None to take forward()'s parameter names; None as a whole for no override.
        outputs: names of the outputs, or None to infer them.
        dynamic_batch: dimension 0 takes any size; False fixes it to 1 (a .pt2 keeps the size it was exported with).
    """

    inputs: Sequence[str | None] | None = None
    outputs: Sequence[str] | None = None
    dynamic_batch: bool = True


@dataclass(frozen=True)
class Traced:
    """A program and the names, dtypes and shapes of its boundary; shapes have None for a dynamic batch."""

    program: ExportedProgram
    signature: Signature


def trace_model(
    model: nn.Module | ExportedProgram, arrays: Sequence[np.ndarray], root: Path, options: TraceOptions | None = None
) -> Traced:
    """Trace the model with real samples and check the program against it at batch sizes 1, 2 and n.

    Args:
        model: eval mode, float32; or a program, which must already have a dynamic batch unless `dynamic_batch` is False.
        arrays: one array of shape (n >= 1, ...) per input.
        root: the user's folder, for messages.
        options: names and batch.

    Raises:
        ProjectError: forward() does not take these inputs or raises, outputs are no tensors or not batched, the model depends on
            the batch size or on its neighbours in the batch, is random, or cannot be exported.
    """
    options = options or TraceOptions()
    inputs = tuple(torch.from_numpy(np.array(a if len(a) > 1 else np.repeat(a, 2, axis=0))) for a in arrays)
    fixed = None
    if isinstance(model, ExportedProgram):
        names, fixed = _program_inputs(model, inputs, options)
        module = cast(nn.Module, model.module())
    else:
        names, module = _input_names(model, inputs), model
        fixed = None if options.dynamic_batch else 1
    names = _override(names, options.inputs)
    runs = _Runs(module, root, fixed)
    expected = runs(inputs, fixed or len(inputs[0]))
    outputs = output_names(runs.raw, options.outputs)
    check_batched(expected, outputs, fixed or len(inputs[0]))
    if isinstance(model, ExportedProgram) and is_flat(runs.raw):
        program = model
    else:
        program = _export(module if is_flat(runs.raw) else FlatOutputs(module).eval(), tuple(i[: fixed or 2] for i in inputs), fixed, root)
    portable(program)
    _check(program, runs, inputs, outputs, fixed)
    specs = [
        tuple(TensorSpec(name, str(t.dtype).removeprefix("torch."), (fixed, *t.shape[1:])) for name, t in zip(labels, tensors, strict=True))
        for labels, tensors in ((names, inputs), (outputs, expected))
    ]
    return Traced(program, Signature(specs[0], specs[1]))


class _Runs:
    """The user's model, run eagerly on the first samples; `raw` is what it last returned."""

    def __init__(self, module: nn.Module, root: Path, fixed: int | None) -> None:
        self.module, self.root, self.fixed = module, root, fixed
        self.raw: Any = None

    def __call__(self, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
        taken = [_rows(i, batch) for i in inputs]
        try:
            with torch.no_grad():
                self.raw = self.module(*taken)
        except Exception as error:  # the user's forward()
            forms = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{tuple(t.shape)}" for t in taken)
            raise user_error(f"the model failed on inputs {forms}", error, self.root) from error
        return flatten(self.raw)


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """The first `batch` rows; the last one is repeated where there are fewer."""
    short = batch - len(tensor)
    return tensor[:batch] if short <= 0 else torch.cat([tensor, tensor[-1:].expand(short, *tensor.shape[1:])])


def _input_names(model: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    takes = f"forward() takes ({', '.join(p.name for p in parameters)})"
    if keywords:
        raise ProjectError(takes, f"{', '.join(keywords)} can only be given by name, inputs are positional", "Wrap the model in a module.")
    if len(inputs) < len(required) or (len(inputs) > len(positional) and not open_ended):
        raise ProjectError(takes, f"the dataset yields {len(inputs)} inputs", "Yield them all as a tuple: ((input_1, input_2), label).")
    names = [p.name for p in positional[: len(inputs)]]
    return names + [f"input_{i}" for i in range(len(names), len(inputs))]


def _program_inputs(program: ExportedProgram, inputs: Sequence[Tensor], options: TraceOptions) -> tuple[list[str], int | None]:
    """Input names of a program and its batch, None where dynamic."""
    names = [str(name) for name in program.graph_signature.user_inputs]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(names) != len(inputs) or program.call_spec.in_spec is None or program.call_spec.in_spec.child(1).num_leaves:
        raise ProjectError(
            f"the program takes ({', '.join(names)})", f"the dataset yields {len(inputs)} inputs by position", "Export it so."
        )
    for name, tensor in zip(names, inputs, strict=True):
        value = nodes[name].meta["val"]
        if value.dtype != tensor.dtype or tuple(value.shape[1:]) != tuple(tensor.shape[1:]):
            wanted, got = (f"{str(t.dtype).removeprefix('torch.')}{tuple(t.shape[1:])}" for t in (value, tensor))
            raise ProjectError(f"the program's input {name!r} is {wanted} per sample", f"the dataset yields {got}", "Preprocess alike.")
    sizes = {int(size) if isinstance(size := nodes[name].meta["val"].shape[0], int) else None for name in names}
    fixed = next(iter(sizes)) if len(sizes) == 1 else 0
    if fixed is not None and options.dynamic_batch:
        raise ProjectError(
            f"the program has a fixed batch of {fixed}",
            "a dynamic one is needed",
            "Export it with `dynamic_shapes` that mark dimension 0 as `torch.export.Dim('batch')`, or set `model.dynamic_batch: false`.",
        )
    return names, fixed


def _override(names: list[str], given: Sequence[str | None] | None) -> list[str]:
    if given is not None:
        names = [name or inferred for name, inferred in zip(given, names, strict=True)]
    if len(set(names)) != len(names):
        raise ProjectError(f"input names {', '.join(names)} repeat", "", "Give each a name of its own in `model.inputs`.")
    return names


def _export(module: nn.Module, inputs: tuple[Tensor, ...], fixed: int | None, root: Path) -> ExportedProgram:
    axes: Any = None
    if fixed is None:
        each = tuple({0: Dim("batch", min=1)} for _ in inputs)
        axes = (each,) if isinstance(module, FlatOutputs) or _takes_star(module) else each
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, inputs, dynamic_shapes=axes)
    except Exception as error:  # torch.export raises many kinds; the first line says what it could not follow
        text = str(error)
        if "specialized" in text or "Constraints violated" in text:
            raise ProjectError("the model works only at the batch size it was traced with", _constraint(text), _STATIC) from error
        place = user_line(error, root)
        why = "the code branches on the values of a tensor" if "data-dependent" in text else f"{type(error).__name__}: {_first(text)}"
        raise ProjectError(
            f"the model cannot be exported{f' ({place})' if place else ''}",
            why,
            "Write forward() without Python branches or loops on tensor values (`torch.where` instead of `if`).",
        ) from error


def _takes_star(module: nn.Module) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


def _constraint(text: str) -> str:
    line = next((line.strip(" -") for line in text.splitlines() if "specialized" in line or "must be" in line), _first(text))
    return line.partition(" If you're")[0][:300]


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:300]


@contextmanager
def _quiet() -> Any:
    """torch.export logs whole graphs on failure; the error says what a user needs."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(program: ExportedProgram, runs: _Runs, inputs: tuple[Tensor, ...], names: Sequence[str], fixed: int | None) -> None:
    module = program.module()
    whole = runs(inputs, fixed or len(inputs[0]))
    if largest_error(runs(inputs, fixed or len(inputs[0])), whole) > 0:
        raise ProjectError(
            "the model gives different outputs for the same inputs",
            "something in forward() is random",
            "Use nn.Dropout instead of F.dropout, and eval().",
        )
    for batch in [fixed] if fixed else sorted({1, 2, len(inputs[0])}):
        eager = runs(inputs, batch)
        check_batched(eager, names, batch)
        with torch.no_grad():
            exported = flatten(module(*(_rows(i, batch) for i in inputs)))
        error = largest_error(exported, eager)
        alone = largest_error(eager, [w[:batch] for w in whole])
        if max(error, alone) > TOLERANCE:
            raise ProjectError(
                f"outputs at batch size {batch} differ by {max(error, alone):.1e} from those at {len(whole[0])}",
                "the model depends on the batch size or on other samples in the batch",
                "Make each output row depend on its own sample alone, in eval mode.",
            )
