"""The table of MIL ops: op type -> a function on torch tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Function = Callable[..., Any]

#: Modules that register ops when imported.
MODULES = (
    "activation",
    "compressed",
    "convolution",
    "creation",
    "elementwise",
    "gathering",
    "image",
    "layout",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "scattering",
    "slicing",
)


@dataclass(frozen=True)
class MilOp:
    """How one MIL op is computed.

    Attributes:
        name: MIL op type, e.g. `conv`.
        function: called with the op's inputs by name. Float tensors arrive as float32 (whatever their declared type),
            integer and boolean ones in their own type, scalar constants as Python values, strings as `str`, tuples as
            lists. Returns one tensor, or a sequence for an op with several outputs.
        exact: the op only moves or selects values, so its output needs no rounding to the declared type.
    """

    name: str
    function: Function
    exact: bool = False


_OPS: dict[str, MilOp] = {}


def mil_op(*names: str, exact: bool = False) -> Callable[[Function], Function]:
    """Register a function as the implementation of one or more MIL ops."""

    def register(function: Function) -> Function:
        for name in names:
            if name in _OPS:
                raise ValueError(f"MIL op {name!r} is implemented twice")
            _OPS[name] = MilOp(name, function, exact)
        return function

    return register


def operations() -> dict[str, MilOp]:
    """Every MIL op the executor knows, by op type."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return dict(sorted(_OPS.items()))
