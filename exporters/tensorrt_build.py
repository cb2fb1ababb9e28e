"""From ONNX to engines: TensorRT-RTX builds for any GPU generation it knows and needs no GPU; TensorRT builds for the GPU that is here.

Imports neither library until asked: both the exporter and the runtime read this module.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgepress.targets.errors import ConfigError, ExportError

#: The largest batch an engine takes, unless the target's own batch is larger.
MAX_BATCH = 64

#: Library -> the module that is imported for it.
MODULES = {"tensorrt-rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


@dataclass(frozen=True)
class BatchRange:
    """The smallest, the tuned-for and the largest batch of an engine."""

    smallest: int
    tuned: int
    largest: int

    @staticmethod
    def of(only: int | None, batch: int) -> BatchRange:
        """The only batch of a model if it has one, those around `batch` otherwise."""
        return BatchRange.around(batch) if only is None else BatchRange(only, only, only)

    @staticmethod
    def around(batch: int) -> BatchRange:
        """1 to `MAX_BATCH` (or to `batch`, where that is larger), tuned for `batch`."""
        return BatchRange(1, batch, max(batch, MAX_BATCH))


@dataclass(frozen=True)
class Engine:
    """A serialized engine, the library that built it with its version, and what its builder warned of."""

    plan: bytes
    library: str
    version: str
    warnings: tuple[str, ...]


def installed(library: str) -> str | None:
    """The version of `tensorrt-rtx` or `tensorrt`, or None where it is not installed."""
    if importlib.util.find_spec(MODULES[library]) is None:
        return None
    names = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings") if library == "tensorrt-rtx" else ("tensorrt",)
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


@cache
def gpu_capability() -> str | None:
    """Compute capability of the first NVIDIA GPU, e.g. `8.6`; None where the driver or the GPU is missing."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device):
        return None
    return f"{major.value}.{minor.value}"


def library_for(capability: str) -> str:
    """Which library builds for this compute capability on this machine.

    Raises:
        ConfigError: none does; the message names those that can be built for.
    """
    if installed("tensorrt") and gpu_capability() == capability:
        return "tensorrt"
    known = rtx_capabilities() if installed("tensorrt-rtx") else []
    if capability in known:
        return "tensorrt-rtx"
    raise ConfigError(
        f"no engine can be built for compute capability {capability}",
        f"TensorRT-RTX builds for {', '.join(known)}" if known else "TensorRT-RTX is not installed",
        "Choose from these, or build on a machine that has this GPU and the tensorrt package.",
    )


def rtx_capabilities() -> list[str]:
    """What the installed TensorRT-RTX builds for, e.g. `["7.5", "8.0", …]`."""
    trt = importlib.import_module(MODULES["tensorrt-rtx"])
    numbers = sorted(int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return [f"{n // 10}.{n % 10}" for n in numbers]


def build_engine(model: Path, shapes: Mapping[str, tuple[int, ...]], batch: BatchRange, capability: str) -> Engine:
    """Build one engine, strongly typed: the types are exactly those of the ONNX.

    Args:
        model: the .onnx file; int8 only as symmetric QuantizeLinear/DequantizeLinear with zero point 0.
        shapes: input name -> shape without the batch.
        batch: what the engine's optimisation profile covers.
        capability: compute capability, e.g. `8.6`.

    Raises:
        ConfigError: this capability cannot be built for here.
        ExportError: the parser refuses a node (named with its op), or the builder fails.
    """
    library = library_for(capability)
    trt = importlib.import_module(MODULES[library])
    logger = _collecting_logger(trt)
    builder = trt.Builder(logger)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know no other kind
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise _refused(parser, library)
    config = builder.create_builder_config()
    if library == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, (batch.smallest, *shape), (batch.tuned, *shape), (batch.largest, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = next((text for kind, text in reversed(logger.messages) if kind == "error"), "the builder gave no reason")
        raise ExportError(
            f"{library} could not build an engine for compute capability {capability}",
            said,
            "Rewrite the op the message names, choose another precision, or leave this compute capability out.",
        )
    warnings = dict.fromkeys(text for kind, text in logger.messages if kind == "warning")
    return Engine(bytes(plan), library, trt.__version__, tuple(warnings))


def _collecting_logger(trt: Any) -> Any:
    """A logger that keeps warnings and errors and prints nothing."""

    class Collector(trt.ILogger):  # type: ignore[misc]  # the base class exists only once the library is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                kind = "warning" if severity == trt.ILogger.WARNING else "error"
                self.messages.append((kind, re.sub(r"^\w+\.cpp:\d+: ", "", message)[:300]))

    return Collector()


def _refused(parser: Any, library: str) -> ExportError:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        return ExportError(f"{library} cannot read the ONNX file", "its parser gave no reason", "Check the file with onnx.checker.")
    nodes = ", ".join(f"{error.node_name() or '(unnamed)'} ({error.node_operator() or 'unknown op'})" for error in errors[:3])
    return ExportError(
        f"{library}'s ONNX parser refuses {nodes}",
        errors[0].desc()[:300],
        "Rewrite the op in the model, or take this target out of `targets:`.",
    )
