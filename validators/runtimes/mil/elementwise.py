"""Elementwise ops (iOS15.elementwise_unary, iOS15.elementwise_binary, iOS17.elementwise_unary; control_flow.select)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import tensor

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_UNARY_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "round": torch.round,  # to the nearest even, as numpy and MIL do
    "sign": torch.sign,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,  # the sign of the divisor, as numpy's `%`
    "mul": torch.mul,
    "pow": torch.pow,
    "real_div": torch.true_divide,
    "sub": torch.sub,
}
_BINARY_EXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "not_equal": torch.ne,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(tensor(x))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(tensor(x), tensor(y))


for _name, _function in _UNARY.items():
    mil_op(_name)(_unary(_function))
for _name, _function in _UNARY_EXACT.items():
    mil_op(_name, exact=True)(_unary(_function))
for _name, _operator in _BINARY.items():
    mil_op(_name)(_binary(_operator))
for _name, _operator in _BINARY_EXACT.items():
    mil_op(_name, exact=True)(_binary(_operator))


@mil_op("inverse")
def inverse(x: Any, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(tensor(x) + epsilon)


@mil_op("log")
def log(x: Any, epsilon: float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(tensor(x) + epsilon)


@mil_op("rsqrt")
def rsqrt(x: Any, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(tensor(x) + epsilon)


@mil_op("clip")
def clip(x: Any, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta)."""
    return torch.clamp(tensor(x), min=alpha, max=beta)


@mil_op("threshold")
def threshold(x: Any, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return torch.clamp(tensor(x), min=alpha)


@mil_op("cast")
def cast(x: Any, dtype: str) -> Tensor:
    """The conversion itself is the rounding to the declared output type; floats lose their fraction on the way to integers."""
    value = tensor(x)
    if dtype == "bool":
        return value != 0
    if dtype.startswith(("int", "uint")) and value.is_floating_point():
        return torch.trunc(value)
    return value


@mil_op("select", exact=True)
def select(cond: Any, a: Any = None, b: Any = None) -> Tensor:
    """`a` where `cond` holds, else `b`; without both, the indices where it holds, one row each."""
    if a is None or b is None:
        return torch.nonzero(tensor(cond)).to(torch.int32)
    return torch.where(tensor(cond).to(torch.bool), tensor(a), tensor(b))
