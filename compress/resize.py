"""Giving a built module other sizes: its tensors and the attributes that speak of them. Reversible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Dotted path of a module -> attribute -> value: int, or list of int. JSON-able.
Attributes = Mapping[str, Mapping[str, Any]]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers (persistent or not) and plain tensor attributes by dotted name; a shared tensor is under each of its names."""
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for name, value in {**vars(part), **part._parameters, **part._buffers}.items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}" if path else name] = value
    return found


def sizes_in(value: Any) -> tuple[int, ...] | None:
    """The numbers of an int, or of a tuple or list of ints; None for anything else."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(items) if items and all(type(item) is int for item in items) else None


def resize(module: nn.Module, tensors: Mapping[str, Tensor], attributes: Attributes) -> None:
    """Put values of other shapes into a module's tensors, which stay the same objects (and tied), and set attributes.

    Args:
        module: changed in place; gradients of its parameters are dropped.
        tensors: dotted name -> value, copied; names as in `tensors_of`.
        attributes: a list of ints becomes a tuple where the module has a tuple.
    """
    own = tensors_of(module)
    for name, value in tensors.items():
        own[name].grad = None
        own[name].data = value.detach().clone(memory_format=torch.contiguous_format)
    for path, values in attributes.items():
        part = module.get_submodule(path)
        for name, value in values.items():
            old = getattr(part, name)
            vars(part)[name] = type(old)(value) if isinstance(old, (tuple, list)) else value


class Snapshot:
    """A module as it is now, to go back to; what its code keeps in attributes while it runs is put back as well."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = [(part, dict(vars(part))) for part in module.modules()]
        self._data = [(tensor, tensor.data, tensor.grad) for tensor in {id(t): t for t in tensors_of(module).values()}.values()]

    def restore(self) -> None:
        """Undo every `resize`, and what forward passes assigned to the module's parts since; values written in place stay."""
        for part, values in self._parts:
            vars(part).clear()
            vars(part).update(values)
        for tensor, data, grad in self._data:
            tensor.data, tensor.grad = data, grad
