from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from edgepress.exporters.openvino import OpenVinoExporter  # noqa: E402
from edgepress.targets.errors import ExecutionError  # noqa: E402
from edgepress.targets.nouns import Artifact, Signature, TensorSpec  # noqa: E402
from edgepress.validators.runtimes.openvino import OpenVino, OpenVinoSession, core  # noqa: E402
from tests.exporters.tensorrt_models import case  # noqa: E402
from tests.exporters.test_openvino import request  # noqa: E402


@cache
def exported(name: str, precision: str, kind: str) -> tuple[Artifact, Path]:
    folder = Path(mkdtemp(prefix="edgepress-test-"))
    return OpenVinoExporter().export(request(name, precision, kind), folder), folder


def opened(name: str, precision: str, kind: str) -> OpenVinoSession:
    session = OpenVino().open(*exported(name, precision, kind))
    assert isinstance(session, OpenVinoSession)
    return session


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_float_session_agrees_with_torch_at_any_batch_and_runs_no_integer_product(name: str) -> None:
    with opened(name, "fp32", "float") as session:
        for batch in (1, 3, 8):
            outputs = session.run({key: value[:batch] for key, value in case(name).feeds().items()})["logits"]
            np.testing.assert_allclose(outputs, case(name).torch_outputs()[:batch], atol=1e-5)
        report = session.kernels()
    assert report.int8_macs_share == 0.0
    assert report.fp32 >= 5 and report.fp16 == 0
    assert session.executed_by.startswith("openvino ") and session.executed_by.endswith(" CPU")


def test_a_static_cnn_runs_every_product_in_integers() -> None:
    with opened("cnn", "int8", "static") as session:
        report = session.kernels()
        outputs = session.run(case("cnn").feeds())["logits"]
    products = [op["type"] for op in report.ops if op["op"] in ("Convolution", "FullyConnected")]
    assert products == ["int8"] * 5
    assert report.int8_macs_share == 1.0
    expected = case("cnn").torch_outputs()
    assert 1e-5 < np.abs(outputs - expected).max() < 0.2 * np.abs(expected).max()


def test_macs_are_those_of_the_model() -> None:
    # 3x3 stem 3->16, 3x3 depthwise 16, 1x1 16->16, 3x3 16->16, each on 16x16 outputs, and the 32->10 head
    expected = 256 * (16 * 27 + 16 * 9 + 16 * 16 + 16 * 144) + 320
    for precision, kind in (("int8", "static"), ("fp32", "float")):
        with opened("cnn", precision, kind) as session:
            assert sum(op.get("macs", 0) for op in session.kernels().ops) == expected


def test_a_type_the_cpu_lacks_is_reported_as_what_really_ran() -> None:
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, capability in (("fp16", "FP16"), ("bf16", "BF16")):
        with opened("cnn", precision, "float") as session:
            report = session.kernels()
        assert (report.fp16 > 0) == (capability in capabilities)


def test_a_bound_call_computes_the_same() -> None:
    with opened("cnn", "int8", "static") as session:
        request_ = session.bound_request(case("cnn").feeds())
        request_.infer()
        np.testing.assert_array_equal(request_.get_tensor("logits").data, session.run(case("cnn").feeds())["logits"])
        assert session.bind(case("cnn").feeds())() is None


def test_layers_show_float_tensors_between_the_ops() -> None:
    with opened("cnn", "fp32", "float") as session:
        layers = session.layers(case("cnn").feeds())
        outputs = session.run(case("cnn").feeds())["logits"]
    assert len(layers) >= 8
    assert any(np.allclose(value, outputs, atol=1e-6) for value in layers.values() if value.shape == outputs.shape)
    assert all(value.dtype == np.float32 for value in layers.values())


def test_a_file_that_is_no_model_is_an_execution_error(tmp_path: Path) -> None:
    artifact, _ = exported("cnn", "fp32", "float")
    (tmp_path / artifact.path).mkdir()
    (tmp_path / artifact.path / "model.xml").write_text("<not a model>")
    with pytest.raises(ExecutionError, match="openvino cannot load 'model'"):
        OpenVino().open(artifact, tmp_path)


def test_an_output_the_file_lacks_is_named() -> None:
    artifact, folder = exported("cnn", "fp32", "float")
    signature = Signature(artifact.signature.inputs, (TensorSpec("scores", "float32", (None, 10)),))
    with pytest.raises(ExecutionError, match="no output 'scores'"):
        OpenVinoSession(folder / artifact.path / "model.xml", signature)


#: Two models opened and closed in the order of their opening, then a signal that has a handler.
SIGNAL_AFTER_SESSIONS = """
import os, pickle, signal, sys
from edgepress.validators.runtimes.openvino import OpenVino
artifact, folder = pickle.loads(sys.stdin.buffer.read())
first = OpenVino().open(artifact, folder)
second = OpenVino().open(artifact, folder)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_signals_still_have_a_stack_after_models_were_closed() -> None:
    given = pickle.dumps(exported("cnn", "fp32", "float"))
    command = [sys.executable, "-X", "faulthandler", "-c", SIGNAL_AFTER_SESSIONS]
    done = subprocess.run(command, input=given, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"handled\n"), done.stderr.decode()
