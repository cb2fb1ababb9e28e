"""Programs of a single MIL op, built with coremltools' own builder (which checks names and types) and run by the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from edgepress.validators.runtimes.mil.program import MilProgram

TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool, "int8": types.int8, "uint8": types.uint8}


def program(build: Callable[..., Any], arrays: Sequence[np.ndarray], opset: str = "iOS18") -> MilProgram:
    """The program `build(*inputs)` on inputs of the arrays' shapes and types."""
    inputs = {f"in{i}": mb.placeholder(a.shape, TYPES[a.dtype.name]) for i, a in enumerate(arrays)}
    with Function(inputs, opset_version=getattr(ct.target, opset)) as function:
        found = build(*(function.inputs[name] for name in inputs))
        function.set_outputs(list(found) if isinstance(found, list | tuple) else [found])
    return MilProgram(function)


def run(build: Callable[..., Any], *arrays: np.ndarray, opset: str = "iOS18") -> list[torch.Tensor]:
    """The outputs of a program, alone and as one of two samples run together: both must agree."""
    compiled = program(build, arrays, opset)
    feeds = {f"in{i}": torch.from_numpy(a) for i, a in enumerate(arrays)}
    alone = compiled.run(feeds)
    together = compiled.run_samples({name: torch.stack([value.flip(0), value]) for name, value in feeds.items()})
    for name, value in alone.items():
        assert torch.allclose(together[name][1].double(), value.double(), rtol=1e-4, atol=1e-5, equal_nan=True), name
    return [alone[out.name] for out in compiled.outputs]


def check(build: Callable[..., Any], expected: Any, *arrays: np.ndarray, opset: str = "iOS18") -> None:
    """One op against what torch says."""
    wanted = list(expected) if isinstance(expected, list | tuple) else [expected]
    for got, want in zip(run(build, *arrays, opset=opset), wanted, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got.double(), torch.as_tensor(want).double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Uniform in [0.1, 0.9): inside the domain of every elementary function."""
    return np.random.default_rng(1).uniform(0.1, 0.9, shape).astype(np.float32)


def integers(high: int, *shape: int, low: int = 0) -> np.ndarray:
    """Random int32 in [low, high)."""
    return np.random.default_rng(2).integers(low, high, shape).astype(np.int32)
