from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_torch")

from edgepress.exporters.litert_convert import to_tflite
from edgepress.exporters.litert_recipes import requantize
from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from edgepress.validators.runtimes.litert import LiteRt, LiteRtSession
from tests.exporters.litert_cases import case, exported, run

TEMPLATE = Path(__file__).parents[3] / "edgepress" / "bundle" / "templates" / "run_litert.py"


def test_a_static_file_runs_every_compute_op_in_int8() -> None:
    artifact, folder = exported("cnn", "int8", "static")
    with LiteRt().open(artifact, folder) as session:
        report = session.kernels()
    assert (report.fp16, report.fp32, report.unknown, report.int8_macs_share) == (0, 0, 0, 1.0)
    assert report.int8 == len(report.ops) >= 9
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"} <= {line["op"] for line in report.ops}


def test_macs_are_those_of_the_model() -> None:
    from edgepress.validators.runtimes.tflite_kernels import _macs

    def tensor(*shape: int) -> dict[str, object]:
        return {"shape": shape}

    assert _macs("CONV_2D", [tensor(1, 8, 8, 3), tensor(16, 3, 3, 3)], tensor(1, 8, 8, 16)) == 8 * 8 * 16 * 27
    assert _macs("DEPTHWISE_CONV_2D", [tensor(1, 8, 8, 16), tensor(1, 3, 3, 16)], tensor(1, 8, 8, 16)) == 8 * 8 * 16 * 9
    assert _macs("FULLY_CONNECTED", [tensor(1, 64, 384), tensor(1536, 384)], tensor(1, 64, 1536)) == 64 * 384 * 1536
    assert _macs("BATCH_MATMUL", [tensor(1, 12, 64, 32), tensor(1, 12, 64, 32)], tensor(1, 12, 64, 64)) == 12 * 64 * 64 * 32
    assert _macs("BATCH_MATMUL", [tensor(1, 12, 64, 64), tensor(1, 12, 64, 32)], tensor(1, 12, 64, 32)) == 12 * 64 * 64 * 32
    assert _macs("ADD", [tensor(1, 4), tensor(1, 4)], tensor(1, 4)) == 0


@pytest.mark.parametrize(
    ("precision", "kind", "share"),
    # dynamic: the depthwise layer, that of 16 inputs and outputs and the head are as fast in float, or faster
    [
        ("fp32", "float", 0.0),
        ("fp16", "float", 0.0),
        ("int8-weights", "weights", 0.0),
        ("int8", "dynamic", 256 * (432 + 2304) / 803136),
    ],
)
def test_the_share_of_integer_macs_follows_the_scheme(precision: str, kind: str, share: float) -> None:
    artifact, folder = exported("cnn", precision, kind)
    with LiteRt().open(artifact, folder) as session:
        assert session.kernels().int8_macs_share == pytest.approx(share)


def linear_file(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray, LiteRtSession]:
    """A linear layer with int8 weights: its weight as the file holds it, its bias, and the open file."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64).eval()
    signature = Signature((TensorSpec("x", "float32", (8, 256)),), (TensorSpec("y", "float32", (8, 64)),))
    module = torch.export.export(layer, (torch.zeros(8, 256),)).module()
    content = to_tflite(module, signature, [np.zeros((8, 256), np.float32)], 8, quantized=False)
    (folder / "linear.tflite").write_bytes(requantize(content, kind))
    session = LiteRtSession(folder / "linear.tflite", signature)
    weight = next(d for d in session._interpreter.get_tensor_details() if d["dtype"] == np.int8)
    scales = weight["quantization_parameters"]["scales"].reshape(-1, 1)
    values = session._interpreter.get_tensor(weight["index"]).astype(np.float32) * scales
    return values, layer.bias.detach().numpy(), session


def quantized_rows(x: np.ndarray) -> np.ndarray:
    """Each row rounded to 256 levels between its own minimum and maximum."""
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = (high - low) / 255
    zero_point = np.round(-128 - low / scale)
    return (np.clip(np.round(x / scale) + zero_point, -128, 127) - zero_point) * scale


def test_a_dynamic_linear_layer_really_multiplies_integers(tmp_path: Path) -> None:
    weight, bias, session = linear_file(tmp_path, "dynamic")
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    y = session.run({"x": x})["y"]
    integer, real = quantized_rows(x) @ weight.T + bias, x @ weight.T + bias
    assert np.abs(y - integer).max() < 1e-5 < 1e-3 < np.abs(y - real).max()
    assert session.kernels().int8 == 1


def test_a_weights_only_linear_layer_multiplies_floats(tmp_path: Path) -> None:
    weight, bias, session = linear_file(tmp_path, "weights")
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    assert np.abs(session.run({"x": x})["y"] - (x @ weight.T + bias)).max() < 1e-5
    assert (session.kernels().int8, session.kernels().fp32) == (0, 1)


def test_a_bound_call_runs_the_inputs_in_place() -> None:
    artifact, folder = exported("cnn", "fp32", "float")
    with LiteRtSession(folder / artifact.path, artifact.signature) as session:
        one = {"image": case("cnn").feeds()["image"][2:3]}
        call = session.bind(one)
        call()
        index = session._outputs["logits"][0]
        np.testing.assert_allclose(session._interpreter.get_tensor(index), case("cnn").torch_outputs()[2:3], atol=1e-4)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float"), ("int8", "static")])
def test_layers_are_float_tensors_that_end_in_the_output(precision: str, kind: str) -> None:
    artifact, folder = exported("cnn", precision, kind)
    with LiteRtSession(folder / artifact.path, artifact.signature) as session:
        one = {"image": case("cnn").feeds()["image"][:1]}
        layers = session.layers(one)
        assert len(layers) >= 9
        assert all(value.dtype == np.float32 for value in layers.values())
        assert any(value.shape == (1, 10) and np.allclose(value, session.run(one)["logits"], atol=0.1) for value in layers.values())


def test_a_promised_name_that_is_not_there_is_an_error() -> None:
    artifact, folder = exported("cnn", "fp32", "float")
    wrong = replace(artifact, signature=Signature(artifact.signature.inputs, (TensorSpec("scores", "float32", (1, 10)),)))
    with pytest.raises(ExecutionError, match=r"no 'scores'.*logits"):
        LiteRt().open(wrong, folder)


def test_an_id_too_large_for_the_file_is_an_error_and_not_another_id() -> None:
    artifact, folder = exported("transformer", "fp32", "float")
    feeds = {name: value[:1].copy() for name, value in case("transformer").feeds().items()}
    feeds["ids"][0, 0] = 2**32 + 1
    with LiteRt().open(artifact, folder) as session, pytest.raises(ExecutionError, match="4294967297"):
        session.run(feeds)


def test_a_broken_file_is_an_execution_error(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"not a model")
    artifact = Artifact("model.tflite", "tflite", Scheme("fp32", "float"), case("cnn").signature)
    with pytest.raises(ExecutionError, match="cannot load"):
        LiteRt().open(artifact, tmp_path)


def test_reading_the_module_loads_neither_torch_nor_litert() -> None:
    code = "import sys; import edgepress.validators.runtimes.litert, edgepress.validators.runtimes.tflite_runtime; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ai_edge_litert", "litert_torch", "tflite_runtime"} & set(loaded)


@pytest.mark.parametrize("io", ["float", "int8"])
def test_the_shipped_script_replays_the_golden_samples(io: str, tmp_path: Path) -> None:
    artifact, folder = exported("cnn", "int8", "static", io)
    shutil.copy(folder / artifact.path, tmp_path)
    shutil.copy(TEMPLATE, tmp_path / "run.py")
    outputs = run("cnn", "int8", "static", io)
    np.savez(tmp_path / "golden_inputs.npz", **case("cnn").feeds())
    np.savez(tmp_path / "golden_outputs.npz", logits=outputs)
    names = {"artifact": artifact.path, "inputs": "golden_inputs.npz", "outputs": "golden_outputs.npz"}
    (tmp_path / "golden.json").write_text(json.dumps({**names, "rtol": 1e-3, "atol": 1e-4}))
    command = [sys.executable, "-I", str(tmp_path / "run.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("match")) == (0, 1), done.stderr
    np.savez(tmp_path / "golden_outputs.npz", logits=outputs + 0.5)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
