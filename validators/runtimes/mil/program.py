"""Loading a saved .mlpackage and running it op by op in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepress.exporters.coreml_import import coremltools
from edgepress.targets.errors import ExecutionError
from edgepress.validators.runtimes.mil.registry import MilOp, operations
from edgepress.validators.runtimes.mil.tensors import HELD, constant, hold

#: Elements of the largest tensor a batch of samples may hold at once (64 MiB of float32).
_LARGEST = 1 << 24
_MOST_SAMPLES = 64


@dataclass(frozen=True)
class Ref:
    """An argument computed by an earlier step, by name."""

    name: str


@dataclass(frozen=True)
class Feature:
    """An input or output of the program: MIL type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One op with its arguments resolved.

    Attributes:
        op: the implementation.
        name: the layer's name in the package.
        arguments: by parameter name: constants, `Ref`s, or lists of both.
        outputs: (name, MIL type, shape) of each result.
        sources: by parameter name, the names of the values it takes, constants included.
        release: names that no later step needs.
    """

    op: MilOp
    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Feature, ...]
    sources: Mapping[str, tuple[str, ...]]
    release: tuple[str, ...] = ()


class MilProgram:
    """An ML Program's function, ready to run.

    Every op computes in float32 on inputs that hold values of their declared type, and its result is rounded to the
    declared type of its output: what a backend with float16 storage and float32 accumulators does. Constants,
    compressed ones included, are materialised once.

    Args:
        function: a coremltools MIL function (`MilProgram.load` takes it from a saved package).

    Attributes:
        inputs, outputs: of the function, in order.
        steps: the ops that depend on inputs, in order.
        constants: everything else, by name.
        vectorized: samples still run together (see `run_samples`).
        made_by: for each constant that an op computed, the op type: `constexpr_blockwise_shift_scale`, ...

    Raises:
        ExecutionError: an op the executor does not know; op and layer are named.
    """

    def __init__(self, function: Any) -> None:
        self.inputs = tuple(_feature(var) for var in function.inputs.values())
        self.outputs = tuple(_feature(var) for var in function.outputs)
        self.constants: dict[str, Any] = {}
        self.made_by: dict[str, str] = {}
        self.steps = self._compile(function)
        largest = max((_elements(out.shape) for step in self.steps for out in step.outputs), default=1)
        self._samples = max(1, min(_MOST_SAMPLES, _LARGEST // max(1, largest)))
        self.vectorized = True

    @staticmethod
    def load(package: Path) -> MilProgram:
        """The `main` function of a saved .mlpackage."""
        ct = coremltools()
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        return MilProgram(load(spec, spec.specificationVersion, model.weights_dir).functions["main"])

    def run(self, feeds: Mapping[str, Tensor], *, watch: bool = False) -> dict[str, Tensor]:
        """Run once, at the shapes the package declares.

        Args:
            feeds: every input by name.
            watch: return every intermediate tensor too.

        Raises:
            ExecutionError: an op failed; op and layer are named.
        """
        values: dict[str, Any] = {f.name: hold(feeds[f.name], f.dtype) for f in self.inputs}
        watched: dict[str, Tensor] = {}
        for step in self.steps:
            for out, value in zip(step.outputs, self._evaluate(step, values), strict=True):
                values[out.name] = value
                if watch:
                    watched[out.name] = value
            for name in step.release:
                del values[name]
        return {**watched, **{f.name: values.get(f.name, self.constants.get(f.name)) for f in self.outputs}}

    def run_samples(self, feeds: Mapping[str, Tensor], *, watch: bool = False) -> dict[str, Tensor]:
        """Run a package of fixed batch over samples stacked in one more leading dimension: (n, *declared shape).

        Vectorised with `torch.func.vmap`, which is by definition n separate runs: every op sees the declared shape, so
        reshapes with a literal batch stay right. An op that vmap cannot carry (a data-dependent shape) makes the
        samples run one after the other instead.
        """
        if self.vectorized:
            try:
                call: Callable[..., dict[str, Tensor]] = torch.func.vmap(lambda f: self.run(f, watch=watch))
                return call(dict(feeds))
            except ExecutionError:
                self.vectorized = False  # either vmap's limit or the op's own fault: the plain run below tells
        count = len(next(iter(feeds.values())))
        pieces = [self.run({name: value[i] for name, value in feeds.items()}, watch=watch) for i in range(count)]
        return {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}

    @property
    def samples_at_once(self) -> int:
        """How many samples `run_samples` should be given at a time, by the size of the largest tensor."""
        return self._samples

    def _compile(self, function: Any) -> tuple[Step, ...]:
        known = operations()
        steps: list[Step] = []
        for op in function.operations:
            if op.op_type == "const":
                self.constants[op.outputs[0].name] = constant(op.outputs[0].val)
                continue
            if op.op_type not in known:
                raise ExecutionError(
                    f"MIL op {op.op_type!r} (layer {op.name!r}) is not known to the reference executor",
                    f"it knows {len(known)} op kinds",
                    "Run this package on a Mac, or rewrite the layer it comes from.",
                )
            arguments = {name: self._argument(var) for name, var in op.inputs.items() if var is not None}
            sources = {name: _names(var) for name, var in op.inputs.items() if var is not None}
            step = Step(known[op.op_type], op.name, arguments, tuple(_feature(var) for var in op.outputs), sources)
            if any(_refs(argument) for argument in arguments.values()):
                steps.append(step)
            else:
                for out, value in zip(step.outputs, self._evaluate(step, {}), strict=True):
                    self.constants[out.name] = value
                    self.made_by[out.name] = op.op_type
        return _with_releases(steps, {f.name for f in self.outputs})

    def _argument(self, var: Any) -> Any:
        if isinstance(var, list | tuple):
            return [self._argument(item) for item in var]
        if var.name in self.constants:
            return self.constants[var.name]
        if var.op is not None and var.op.op_type == "const":
            return constant(var.val)
        return Ref(var.name)

    def _evaluate(self, step: Step, values: Mapping[str, Any]) -> list[Tensor]:
        try:
            arguments = {name: _resolve(argument, values) for name, argument in step.arguments.items()}
            result = step.op.function(**arguments)
            results = list(result) if isinstance(result, list | tuple) else [result]
            return [hold(value, out.dtype, exact=step.op.exact) for value, out in zip(results, step.outputs, strict=True)]
        except Exception as error:  # whatever torch raises, the layer is what a person can look for
            raise ExecutionError(
                f"MIL op {step.op.name!r} (layer {step.name!r}) failed in the reference executor", f"{type(error).__name__}: {error}"
            ) from error


def _feature(var: Any) -> Feature:
    from coremltools.converters.mil.mil import types

    shape = tuple(int(size) if _is_number(size) else -1 for size in var.shape or ())
    name = types.builtin_to_string(var.dtype)
    return Feature(var.name, name if name in HELD else "fp32", shape)


def _is_number(size: Any) -> bool:
    try:
        int(size)
    except (TypeError, ValueError):
        return False
    return True


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= max(1, size)
    return count


def _names(var: Any) -> tuple[str, ...]:
    return tuple(item.name for item in var) if isinstance(var, list | tuple) else (var.name,)


def _resolve(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, list):
        return [_resolve(item, values) for item in argument]
    return argument


def _refs(argument: Any) -> list[str]:
    if isinstance(argument, Ref):
        return [argument.name]
    if isinstance(argument, list):
        return [name for item in argument for name in _refs(item)]
    return []


def _with_releases(steps: list[Step], kept: set[str]) -> tuple[Step, ...]:
    """Note at each step which names are used for the last time there (or never), so that memory follows the live tensors."""
    seen = set(kept)
    result: list[Step] = []
    for step in reversed(steps):
        names = {name for argument in step.arguments.values() for name in _refs(argument)}
        names |= {out.name for out in step.outputs}
        result.append(replace(step, release=tuple(sorted(names - seen))))
        seen |= names
    return tuple(reversed(result))
