from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgepress.targets.errors import ExecutionError, RuntimeUnavailable
from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from edgepress.validators.runtimes import tflite_environment as environment
from edgepress.validators.runtimes.tflite_probe import one_code_model, op_codes
from edgepress.validators.runtimes.tflite_runtime import TfliteRuntime, TfliteSession

SIGNATURE = Signature((TensorSpec("x", "float32", (1, 4)),), (TensorSpec("y", "float32", (1, 4)),))
GATHER_ND, FULLY_CONNECTED = 107, 9

needs_environment = pytest.mark.skipif(not environment.installed(), reason=f"tflite-runtime is not installed: {environment.COMMAND}")


def converted(name: str, precision: str, kind: str) -> tuple[Artifact, Path]:
    pytest.importorskip("litert_torch")
    from tests.exporters.litert_cases import exported

    return exported(name, precision, kind)


@needs_environment
@pytest.mark.parametrize(
    ("name", "precision", "kind", "atol"),
    [
        ("cnn", "fp32", "float", 1e-4),
        ("cnn", "int8", "static", 0.05),
        ("transformer", "fp32", "float", 1e-4),
        pytest.param("transformer", "fp16", "float", 1e-4, marks=pytest.mark.slow),
        pytest.param("transformer", "int8-weights", "weights", 1e-4, marks=pytest.mark.slow),
        ("transformer", "int8", "static-matmul", 0.05),
    ],
)
def test_the_old_runtime_computes_what_litert_computes(name: str, precision: str, kind: str, atol: float) -> None:
    artifact, folder = converted(name, precision, kind)
    from tests.exporters.litert_cases import case, run

    with TfliteRuntime().open(artifact, folder) as session:
        np.testing.assert_allclose(session.run(case(name).feeds())["logits"], run(name, precision, kind), atol=atol)
        assert session.executed_by == "tflite-runtime 2.14.0 CPU"


@needs_environment
def test_a_dynamic_file_is_refused_by_op_and_version_where_the_old_runtime_would_compute_zeros() -> None:
    artifact, folder = converted("transformer", "int8", "dynamic")
    with pytest.raises(ExecutionError, match=r"no kernel for .*EMBEDDING_LOOKUP version 4.*FULLY_CONNECTED version 12"):
        TfliteRuntime().open(artifact, folder)


@needs_environment
def test_the_old_runtime_proves_its_integer_kernels_too() -> None:
    artifact, folder = converted("cnn", "int8", "static")
    with TfliteRuntime().open(artifact, folder) as session:
        report = session.kernels()
    assert (report.fp32, report.int8_macs_share) == (0, 1.0)
    assert report.int8 >= 9


@needs_environment
def test_every_op_it_lacks_is_named_with_its_version(tmp_path: Path) -> None:
    artifact, folder = converted("transformer", "fp32", "float")
    from edgepress.exporters.litert_flatbuffer import TfliteFile

    file = TfliteFile((folder / artifact.path).read_bytes())
    lifted = [(code, name) for code, (name, _) in zip(file.model.operatorCodes, file.operators(), strict=True)]
    for code, name in lifted:
        if name in ("FULLY_CONNECTED", "SOFTMAX"):
            code.version = 99
    (tmp_path / artifact.path).write_bytes(file.pack())
    with pytest.raises(ExecutionError) as caught:
        TfliteRuntime().open(artifact, tmp_path)
    assert "FULLY_CONNECTED version 99" in str(caught.value)
    assert "SOFTMAX version 99" in str(caught.value)
    assert str(caught.value).count(" version ") == 2


@needs_environment
def test_a_broken_file_is_an_execution_error(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"\0\0\0\0TFL3" + b"\0" * 64)
    artifact = Artifact("model.tflite", "tflite", Scheme("fp32", "float"), SIGNATURE)
    with pytest.raises(ExecutionError, match=r"model\.tflite"):
        TfliteRuntime().open(artifact, tmp_path)


@pytest.mark.parametrize(("code", "version"), [(0, 1), (FULLY_CONNECTED, 5), (GATHER_ND, 5), (150, 2), (206, 1)])
def test_a_probe_model_holds_its_one_op_code(code: int, version: int) -> None:
    assert op_codes(one_code_model(code, version)) == [(code, version, "")]


@needs_environment
def test_the_probe_says_what_the_runtime_really_lacks(tmp_path: Path) -> None:
    artifact = Artifact("model.tflite", "tflite", Scheme("fp32", "float"), SIGNATURE)
    (tmp_path / "model.tflite").write_bytes(one_code_model(GATHER_ND, 5))
    with pytest.raises(ExecutionError, match=r"no kernel for GATHER_ND version 5"):
        TfliteRuntime().open(artifact, tmp_path)


def test_op_codes_agree_with_litert_on_a_real_file() -> None:
    artifact, folder = converted("cnn", "int8", "static")
    from edgepress.exporters.litert_flatbuffer import TfliteFile

    content = (folder / artifact.path).read_bytes()
    assert [version for _, version, _ in op_codes(content)] == [version for _, version in TfliteFile(content).operators()]


def session_of(code: str, seconds: float) -> TfliteSession:
    return TfliteSession(Path("model.tflite"), SIGNATURE, answer_seconds=seconds, command=(sys.executable, "-c", code))


def test_a_child_that_hangs_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(ExecutionError, match=r"did not answer in 0.5 s"):
        session_of("import time; time.sleep(60)", 0.5)
    assert time.monotonic() - start < 20


def test_a_child_that_crashes_leaves_its_code_and_last_words() -> None:
    with pytest.raises(ExecutionError, match=r"ended with code 3.*out of cheese"):
        session_of("import sys; sys.stderr.write('out of cheese'); sys.exit(3)", 60)


def test_without_the_environment_the_command_that_makes_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_ENVS", str(tmp_path))
    support = TfliteRuntime().supports()
    assert (support.usable, support.install) == (False, "edgepress doctor --install tflite-runtime")
    assert str(tmp_path) in str(support.missing)


@pytest.mark.slow
def test_a_failed_installation_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_ENVS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeUnavailable, match=r"pip could not install.*tflite-runtime"):
        environment.install()
    assert list(tmp_path.iterdir()) == []
    assert not environment.installed()


def test_a_python_without_a_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_ENVS", str(tmp_path))
    monkeypatch.setattr(environment, "PYTHONS", ("2.6",))
    with pytest.raises(RuntimeUnavailable, match=r"no wheel for Python 3\.\d+"):
        environment.install()


def test_latency_is_declared_out_of_reach() -> None:
    assert "child process" in str(TfliteRuntime().timing_unavailable())
