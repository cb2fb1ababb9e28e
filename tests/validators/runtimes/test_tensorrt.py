from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx_bindings")

from edgepress.exporters import tensorrt_build as build
from edgepress.exporters.tensorrt import TensorRtExporter
from edgepress.targets.errors import ExecutionError, MeasurementError
from edgepress.targets.nouns import Artifact
from edgepress.validators.runtimes.tensorrt import TensorRt
from tests.exporters.tensorrt_models import case

without_gpu = pytest.mark.skipif(build.gpu_capability() is not None, reason="this machine has an NVIDIA GPU")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("cnn")
    return TensorRtExporter().export(case("cnn").request("int8", "static", compute_capability=["8.6", "8.9"]), folder), folder


def test_the_module_loads_with_numpy_alone() -> None:
    code = "import sys, edgepress.validators.runtimes.tensorrt; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@without_gpu
def test_without_a_gpu_the_graph_runs_as_written_and_says_so(exported: tuple[Artifact, Path]) -> None:
    import onnxruntime

    artifact, folder = exported
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = onnxruntime.InferenceSession(str(folder / "model" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    with TensorRt().open(artifact, folder) as session:
        outputs = session.run(case("cnn").feeds())["logits"]
        assert session.executed_by == f"onnxruntime {onnxruntime.__version__} (same graph; engine not executed)"
    assert np.allclose(outputs, literal.run(["logits"], case("cnn").feeds())[0], atol=1e-4)


@without_gpu
def test_without_a_gpu_latency_is_refused_not_borrowed_from_the_reference(exported: tuple[Artifact, Path]) -> None:
    assert "GPU" in (TensorRt().timing_unavailable() or "")
    with TensorRt().open(*exported) as session, pytest.raises(MeasurementError, match="latency"):
        session.bind(case("cnn").feeds())


@without_gpu
def test_batches_beyond_the_engine_run_too(exported: tuple[Artifact, Path]) -> None:
    with TensorRt().open(*exported) as session:
        image = np.repeat(case("cnn").feeds()["image"], 9, axis=0)
        assert session.run({"image": image})["logits"].shape == (72, 10)


def test_a_damaged_engine_turns_the_report_to_unknown(exported: tuple[Artifact, Path]) -> None:
    artifact, folder = exported
    engine = folder / "model" / "sm89.engine"
    whole = engine.read_bytes()
    with TensorRt().open(artifact, folder) as session:
        assert session.kernels().unknown == 0
        engine.write_bytes(whole[:2000])
        try:
            report = session.kernels()
        finally:
            engine.write_bytes(whole)
    assert report.unknown > 5 and report.int8 == 0 and report.int8_macs_share is None


def test_a_missing_graph_is_an_execution_error(exported: tuple[Artifact, Path], tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="tensorrt cannot load"):
        TensorRt().open(exported[0], tmp_path)
