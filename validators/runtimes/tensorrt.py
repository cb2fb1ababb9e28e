"""TensorRT: the engine itself where its GPU is; elsewhere ONNX Runtime on the very graph that was built, and reports say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepress.exporters.onnx_bf16 import REPLAY
from edgepress.exporters.tensorrt_build import gpu_capability, installed
from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Artifact, KernelReport, Support
from edgepress.validators.runtimes.base import Arrays, Runtime, Session
from edgepress.validators.runtimes.onnxruntime import OnnxRuntime, OrtSession
from edgepress.validators.runtimes.tensorrt_plan import PlanOp, read_plan

_TYPES = ("int8", "fp8", "fp16", "fp32", "unknown")


class TensorRt(Runtime):
    """Opens the folder the TensorRT exporter wrote: `model.onnx` and an engine per compute capability."""

    name = "tensorrt"

    def supports(self) -> Support:
        """A GPU with TensorRT-RTX or TensorRT; or ONNX Runtime, which runs the same graph."""
        if library := _gpu_library():
            return Support(True, f"{library} {installed(library)}")
        return OnnxRuntime().supports()

    def timing_unavailable(self) -> str | None:
        """An engine is timed on an NVIDIA GPU."""
        if gpu_capability() is None:
            return "a TensorRT engine runs on an NVIDIA GPU, and this machine has none"
        return None if _gpu_library() else "neither tensorrt nor tensorrt-rtx is installed beside this machine's GPU"

    def peak_unavailable(self) -> str | None:
        """The peak that is measured is the processor's."""
        return "the engine runs on a GPU, whose peak is not measured"

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        root = folder / artifact.path
        here = gpu_capability()
        for engine in artifact.facts["engines"]:
            if engine["compute_capability"] == here and installed(engine["library"]):
                from edgepress.validators.runtimes.tensorrt_gpu import EngineSession

                report = _KernelReader(root, artifact)
                return EngineSession(root / engine["file"], engine["library"], artifact.signature, artifact.facts["max_batch"], report)
        return ReferenceSession(root, artifact, threads)


def _gpu_library() -> str | None:
    """The library that can run an engine here, or None."""
    if gpu_capability() is None:
        return None
    return next((library for library in ("tensorrt", "tensorrt-rtx") if installed(library)), None)


def _graph(root: Path) -> Path:
    """What ONNX Runtime runs in place of an engine: what that was built from, or its copy for CPUs in bf16."""
    return root / (REPLAY if (root / REPLAY).exists() else "model.onnx")


class ReferenceSession(OrtSession):
    """The graph an engine was built from, in ONNX Runtime, every quantize and dequantize computed as written.

    Args:
        root: the folder with `model.onnx` and the engines.
        artifact: its record.
        threads: intra-op threads.
    """

    def __init__(self, root: Path, artifact: Artifact, threads: int) -> None:
        graph = _graph(root)
        rounded = ", rounded to bfloat16" if graph.name == REPLAY else ""
        who = f"onnxruntime {version('onnxruntime')} (same graph{rounded}; engine not executed)"
        super().__init__(graph, artifact.signature, threads, reference_qdq=True, executed_by=who)
        self._reader = _KernelReader(root, artifact)

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Refuses: the time of the reference says nothing about the engine.

        Raises:
            MeasurementError: always.
        """
        raise MeasurementError(
            "the latency of a TensorRT engine cannot be taken here",
            f"no engine of this artifact fits the GPU of this machine ({gpu_capability() or 'none'})",
            "Add its compute capability to the target's compute_capability, or time the engine on its own GPU.",
        )

    def kernels(self) -> KernelReport:
        """Types of the engine's kernels, read from the engine, not from the reference."""
        return self._reader()


class _KernelReader:
    """Reads an artifact's engines: `reader()` is the report of the one with the fewest int8 kernels."""

    def __init__(self, root: Path, artifact: Artifact) -> None:
        self._root, self._artifact = root, artifact

    def __call__(self) -> KernelReport:
        nodes = self._nodes()
        reports = [
            engine_report(read_plan((self._root / engine["file"]).read_bytes()), nodes, engine["file"])
            for engine in self._artifact.facts["engines"]
        ]
        return min(reports, key=lambda report: (report.unknown == 0, report.int8))

    def _nodes(self) -> dict[str, int]:
        """Name -> multiply-accumulates at batch 1 (0 for all but convolutions and matrix products) of the graph's compute nodes."""
        from edgepress.validators.runtimes import onnx_graph

        with TemporaryDirectory() as scratch:
            graph = _graph(self._root)
            for part in self._root.glob(f"{graph.name}*"):
                shutil.copyfile(part, Path(scratch) / part.name)
            report = onnx_graph.kernel_report(Path(scratch) / graph.name, self._artifact.signature, graph.name)
        return {op["name"]: int(op.get("macs", 0)) for op in report.ops}


def engine_report(ops: list[PlanOp], nodes: Mapping[str, int], engine: str) -> KernelReport:
    """Join what an engine says of its kernels with the graph it was built from.

    Args:
        ops: the engine's kernels; empty where the engine could not be read.
        nodes: compute nodes of the ONNX, name -> multiply-accumulates.
        engine: the engine's file name, for the report.

    Returns:
        Counts of the engine's kernels: convolutions and matrix products by what they multiply, fused pointwise kernels by the widest
        type they touch. Kernels that only rescale a convolution's or product's result are left out. All `unknown` where the engine
        could not be read.
    """
    if not ops:
        return KernelReport(0, 0, 0, max(1, len(nodes)), None, f"{engine}: its graph dump could not be read")
    pointwise = {name for name, macs in nodes.items() if not macs}
    counted = [op for op in ops if op.kind != "pointwise" or not nodes or pointwise.intersection(op.layers)]
    lines: list[dict[str, Any]] = [{"op": op.kind, "name": op.name, "type": op.type, "nodes": list(op.layers)} for op in counted]
    counts = {kind: sum(op.type == kind for op in counted) for kind in _TYPES}
    return KernelReport(**counts, int8_macs_share=_int8_share(ops, nodes), source=f"graph dump in {engine}", ops=tuple(lines))


def _int8_share(ops: list[PlanOp], nodes: Mapping[str, int]) -> float | None:
    """Share of multiply-accumulates in int8; None unless every convolution and product is found in the engine with its type."""
    matrix = [op for op in ops if op.kind == "matrix"]
    types = {layer: op.type for op in matrix for layer in op.layers} | {op.name: op.type for op in matrix}
    heavy = {name: macs for name, macs in nodes.items() if macs}
    found = {name: types.get(name, "unknown") for name in heavy}
    if not heavy or "unknown" in found.values():
        return None
    return sum(macs for name, macs in heavy.items() if found[name] == "int8") / sum(heavy.values())
