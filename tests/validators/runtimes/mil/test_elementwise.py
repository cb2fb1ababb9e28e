from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb

from tests.validators.runtimes.mil.one_op import check, integers, normal, positive, run

UNARY = [
         "acos",     "asin",     "atan",     "atanh",     "cos",     "cosh",     "erf",     "exp",     "exp2",     "sin",
    "sinh",     "sqrt",     "square",     "tan",     "tanh",     "abs",     "ceil",     "floor",     "round",     "sign",
    "sigmoid",     "relu",     "relu6",
]  # fmt: skip
BINARY: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.div,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
}
ACTIVATIONS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": ({}, F.silu),
    "softplus": ({}, F.softplus),
    "softsign": ({}, F.softsign),
    "clamped_relu": ({"alpha": 0.1, "beta": 0.8}, lambda x: F.leaky_relu(x, 0.1).clamp(max=0.8)),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "gelu": ({"mode": "EXACT"}, F.gelu),
    "leaky_relu": ({"alpha": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    "linear_activation": ({"alpha": 1.5, "beta": -0.5}, lambda x: 1.5 * x - 0.5),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * torch.tanh(0.6 * x)),
    "sigmoid_hard": ({"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
    "thresholded_relu": ({"alpha": 0.4}, lambda x: F.threshold(x, 0.4, 0.0)),
    "softmax": ({"axis": 1}, lambda x: F.softmax(x, 1)),
    "clip": ({"alpha": -0.5, "beta": 0.7}, lambda x: x.clamp(-0.5, 0.7)),
    "threshold": ({"alpha": 0.2}, lambda x: x.clamp(min=0.2)),
    "inverse": ({"epsilon": 1e-3}, lambda x: 1 / (x + 1e-3)),
    "rsqrt": ({"epsilon": 10.0}, lambda x: torch.rsqrt(x + 10.0)),
    "log": ({"epsilon": 10.0}, lambda x: torch.log(x + 10.0)),
    "identity": ({}, lambda x: x),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    x = positive(3, 4, 5) if name in ("acos", "asin", "atanh", "sqrt") else normal(3, 4, 5) * 3
    check(lambda v: getattr(mb, name)(x=v), getattr(F if name == "relu6" else torch, name)(torch.from_numpy(x)), x)


@pytest.mark.parametrize("name", BINARY)
def test_binary_with_broadcasting(name: str) -> None:
    x, y = (
        (positive(3, 4), positive(4)) if name == "pow" else (integers(5, 3, 4).astype(np.float32), integers(5, 4, low=1).astype(np.float32))
    )
    check(lambda a, b: getattr(mb, name)(x=a, y=b), BINARY[name](torch.from_numpy(x), torch.from_numpy(y)), x, y)


@pytest.mark.parametrize("name", ["floor_div", "mod", "add", "mul", "sub"])
def test_integer_arithmetic_follows_the_sign_of_the_divisor(name: str) -> None:
    x, y = integers(20, 6, low=-20), np.array([3, -3, 4, -4, 5, -5], dtype=np.int32)
    check(lambda a, b: getattr(mb, name)(x=a, y=b), BINARY[name](torch.from_numpy(x), torch.from_numpy(y)), x, y)


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logical(name: str) -> None:
    x, y = integers(2, 8).astype(bool), integers(2, 8, 1).astype(bool)
    check(lambda a, b: getattr(mb, name)(x=a, y=b), getattr(torch, name)(torch.from_numpy(x), torch.from_numpy(y)), x, y)


def test_logical_not() -> None:
    x = integers(2, 8).astype(bool)
    check(lambda a: mb.logical_not(x=a), ~torch.from_numpy(x), x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    arguments, reference = ACTIVATIONS[name]
    x = normal(2, 4, 3, 3)
    typed = {key: np.float32(v) if isinstance(v, float) else v for key, v in arguments.items()}
    check(lambda v: getattr(mb, name)(x=v, **typed), reference(torch.from_numpy(x)), x)


@pytest.mark.parametrize(
    ("mode", "reference"),
    [
        ("TANH_APPROXIMATION", lambda x: F.gelu(x, approximate="tanh")),
        ("SIGMOID_APPROXIMATION", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_gelu_approximations(mode: str, reference: Callable[..., torch.Tensor]) -> None:
    check(lambda v: mb.gelu(x=v, mode=mode), reference(torch.from_numpy(normal(4, 5))), normal(4, 5))


def test_per_channel_activations() -> None:
    x, alpha, beta = normal(2, 4, 3, 3), positive(4), positive(4)
    t, a, b = torch.from_numpy(x), torch.from_numpy(alpha), torch.from_numpy(beta)[:, None, None]
    check(lambda v: mb.prelu(x=v, alpha=alpha), F.prelu(t, a), x)
    check(lambda v: mb.softplus_parametric(x=v, alpha=alpha, beta=beta), a[:, None, None] * F.softplus(b * t), x)


@pytest.mark.parametrize("dtype", ["int32", "fp16", "bool", "int8", "fp32"])
def test_cast(dtype: str) -> None:
    x = normal(20) * 9
    to = {"int32": torch.int32, "fp16": torch.float16, "bool": torch.bool, "int8": torch.int8, "fp32": torch.float32}[dtype]
    check(lambda v: mb.cast(x=v, dtype=dtype), torch.from_numpy(x).to(to), x)


def test_select() -> None:
    cond, a, b = integers(2, 3, 4).astype(bool), normal(3, 4), normal(4)
    check(lambda c, u, v: mb.select(cond=c, a=u, b=v), torch.where(*map(torch.from_numpy, (cond, a, b))), cond, a, b)


def test_results_are_rounded_to_the_declared_half_precision() -> None:
    x = normal(50).astype(np.float16)
    (got,) = run(lambda v: mb.exp(x=v), x)
    exact = torch.exp(torch.from_numpy(x).float())
    assert torch.equal(got, exact.half().float())
    assert not torch.equal(got, exact)


def test_half_precision_overflows_to_infinity() -> None:
    (got,) = run(lambda v: mb.mul(x=v, y=v), np.full(2, 300, dtype=np.float16))
    assert torch.isinf(got).all()
