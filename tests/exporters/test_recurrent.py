"""Recurrent layers: their weights are integers in every int8 file, and they compute in integers where a runtime has a kernel for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgepress.compress.portable import portable  # noqa: E402
from edgepress.compress.quantize import calibrate  # noqa: E402
from edgepress.exporters import EXPORTERS  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.targets.nouns import Artifact, KernelReport, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from tests.exporters.sizes import size_of  # noqa: E402
from tests.saturation import saturates  # noqa: E402

STEPS, FEATURES, STATE = 9, 12, 24
STATIC = Scheme("int8", "static")


class Tagger(nn.Module):
    """A recurrent layer over a sequence and a class for every step; (n, steps, features) -> (n, steps, 4)."""

    def __init__(self, kind: type[nn.RNNBase], both_ways: bool, state: int = STATE) -> None:
        super().__init__()
        self.steps = kind(FEATURES, state, batch_first=True, bidirectional=both_ways)  # type: ignore[arg-type]  # torch types its modes
        self.head = nn.Linear(state * (1 + both_ways), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0])


def shipped(model: nn.Module, scheme: Scheme, folder: Path, runtime: str = "onnxruntime") -> tuple[Artifact, KernelReport, float]:
    """An exported file, its kernels, and how far in dB its answers at batch 5 are from the float model's."""
    x = torch.randn(16, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    folder.mkdir(exist_ok=True)
    program = portable(torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(x,)]).save(folder / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, STEPS, FEATURES)),), (TensorSpec("y", "float32", (None, STEPS, 4)),))
    statistics, target = folder / "statistics" if scheme.calibrated else None, Target("cpu", runtime, "CPU", scheme.precision)
    wanted = ExportRequest(folder / "model.pt2", signature, statistics, target, scheme, (x[:4].numpy(),))
    artifact = EXPORTERS.get(runtime)().export(wanted, folder / "out")
    with RUNTIMES.get(runtime)().open(artifact, folder / "out") as session:
        found, kernels = session.run({"x": x[:5].numpy()})["y"], session.kernels()
    with torch.no_grad():
        expected = model(x[:5]).numpy()
    return artifact, kernels, float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", ["static", "static-matmul", "dynamic"])
def test_an_lstm_computes_in_integers(kind: str, both_ways: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact, kernels, decibels = shipped(Tagger(nn.LSTM, both_ways), Scheme("int8", kind), tmp_path)
    graph = onnx.load(tmp_path / "out" / artifact.path).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("DynamicQuantizeLSTM") == 1 and "LSTM" not in ops
    names = next(node.input[1:3] for node in graph.node if node.op_type == "DynamicQuantizeLSTM")
    stored = [onnx.numpy_helper.to_array(tensor).swapaxes(-1, -2) for tensor in graph.initializer if tensor.name in names]
    assert len(stored) == 2 and max(np.abs(weight).max() for weight in stored) > 64
    assert not any(saturates(weight.reshape(-1, weight.shape[-1])) for weight in stored)
    assert kernels.int8_macs_share == 1.0 and decibels > 30
    assert not [op for op in artifact.float_ops if op["op"] in ("aten.lstm", "onnx.LSTM")]
    weights = (FEATURES + STATE) * 4 * STATE * (1 + both_ways)
    assert (tmp_path / "out" / artifact.path).stat().st_size < 2 * weights + 8000


def test_an_lstm_behind_an_integer_layer_computes_in_integers_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, kernels, decibels = shipped(nn.Sequential(nn.Linear(FEATURES, FEATURES), Tagger(nn.LSTM, True)), Scheme("int8", "static"), tmp_path)
    assert kernels.int8_macs_share == 1.0 and decibels > 25


@pytest.mark.parametrize("kind", ["float", "weights"])
def test_schemes_without_integer_activations_leave_an_lstm_as_it_is(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact, kernels, decibels = shipped(Tagger(nn.LSTM, False), Scheme("fp32" if kind == "float" else "int8-weights", kind), tmp_path)
    assert "LSTM" in [node.op_type for node in onnx.load(tmp_path / "out" / artifact.path).graph.node]
    assert kernels.int8_macs_share == 0.0 and decibels > 35


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_multiply_accumulates_of_recurrent_layers_are_counted(kind: type[nn.RNNBase], gates: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, kernels, _ = shipped(Tagger(kind, True), Scheme("fp32", "float"), tmp_path)
    assert [op["macs"] for op in kernels.ops if op["op"] == kind.__name__] == [STEPS * 2 * gates * STATE * (FEATURES + STATE)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_product_behind_steps_that_came_first_loads_in_float16(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert shipped(Tagger(kind, False), Scheme("fp16", "float"), tmp_path)[2] > 50


@pytest.mark.parametrize("scheme", [STATIC, Scheme("int8-weights", "weights")], ids=["static", "weights"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    ("runtime", "package", "whole", "float_bytes", "nodes"),
    [
        ("onnxruntime", "onnxruntime", "fp32", 4, 4000),
        ("openvino", "openvino", "fp32", 4, 18000),  # unpacks in XML, 3 kB a weight
        ("litert", "litert_torch", "fp32", 4, 4000),
        ("coreml", "coremltools", "fp16", 2, 6000),
    ],
)
def test_weights_of_recurrent_layers_are_stored_in_a_byte_each(
    runtime: str, package: str, whole: str, float_bytes: int, nodes: int, kind: type[nn.RNNBase], scheme: Scheme, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    torch.manual_seed(0)
    model = Tagger(kind, kind is nn.LSTM, 96)
    original, _, _ = shipped(model, Scheme(whole, "float"), tmp_path / "float", runtime)
    artifact, _, decibels = shipped(model, scheme, tmp_path / "int8", runtime)
    sizes = [size_of(tmp_path / name / "out", made) for name, made in (("float", original), ("int8", artifact))]
    weights = sum(weight.numel() for name, weight in model.steps.named_parameters() if name.startswith("weight"))
    assert sizes[0] - sizes[1] > 0.9 * weights * (float_bytes - 1) - nodes
    assert decibels > (32 if scheme == STATIC else 38)
    said = {op["op"]: op["reason"] for op in artifact.float_ops}
    integer = runtime == "litert" or (runtime == "onnxruntime" and kind is nn.LSTM)
    name = "rnn_tanh" if kind is nn.RNN else kind.__name__.lower()
    if scheme == STATIC:
        assert f"aten.{name}" not in said if integer else "weights alone" in said[f"aten.{name}"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_multiply_integers_in_litert(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    _, kernels, decibels = shipped(Tagger(kind, False, 96), STATIC, tmp_path, "litert")
    assert kernels.int8_macs_share == 1.0 and decibels > 32
