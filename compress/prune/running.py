"""Running a user's model on trial: what its code reads, whether it trains, and where it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.project.outputs import flatten


@contextmanager
def watching(model: nn.Module, kinds: Iterable[type[nn.Module]]) -> Iterator[dict[type[nn.Module], set[str]]]:
    """Note the names of all attributes that are read, meanwhile, of modules of exactly these classes."""
    names: dict[type[nn.Module], set[str]] = {kind: set() for kind in kinds}
    spies = {kind: _spy(kind, names[kind]) for kind in names}
    parts = [(part, type(part)) for part in model.modules() if type(part) in names]
    try:
        for part, kind in parts:
            part.__class__ = spies[kind]
        yield names
    finally:
        for part, kind in parts:
            part.__class__ = kind


def _spy(kind: type[nn.Module], names: set[str]) -> Any:
    def read(self: Any, name: str) -> Any:
        names.add(name)
        return super(spy, self).__getattribute__(name)

    metaclass: Any = type(kind)
    spy = metaclass(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})
    return spy


def train_step(model: nn.Module, batch: Sequence[Tensor]) -> None:
    """One forward and backward pass in train mode, without a step of an optimizer."""
    model.train()
    outputs = [output for output in flatten(model(*batch)) if output.requires_grad]
    if outputs:
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()


def failure(model: nn.Module, error: Exception) -> str:
    """In a sentence: the innermost module of the user's that was running, and the first line of the error."""
    paths = {id(part): path or "the model" for path, part in model.named_modules()}
    place, trace = "the model", error.__traceback__
    while trace is not None:
        part = trace.tb_frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in paths and not type(part).__module__.startswith("torch."):
            place = paths[id(part)]
        trace = trace.tb_next
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    return f"forward() of {place} does not follow the smaller sizes: {text}"
