"""Activations behind convolutions: rounded once where a kernel computes both, in float where float kernels alone are fast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate, render
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES
from edgepress.validators.runtimes.base import Session

STATIC = Scheme("int8", "static")
SIGNATURE = Signature((TensorSpec("image", "float32", (None, 3, 16, 16)),), (TensorSpec("logits", "float32", (None, 5)),))


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), activation, nn.Conv2d(16, 16, 3, padding=1, groups=16), activation)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layers(image).mean((2, 3)))


def program_of(model: nn.Module) -> tuple[torch.export.ExportedProgram, Tensor]:
    images = 3 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.export.export(model.eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), images


def opened(runtime: str, model: nn.Module, folder: Path) -> tuple[Session, Tensor, np.ndarray]:
    """The static int8 file in its runtime, images, and what the float model answers."""
    program, images = program_of(model)
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(images,)]).save(folder / "statistics")
    target = Target("phone", runtime, "CPU", "int8", {"compute_capability": ("8.9",)} if runtime == "tensorrt" else {})
    request = ExportRequest(folder / "model.pt2", SIGNATURE, folder / "statistics", target, STATIC, (images[:4].numpy(),))
    artifact = EXPORTERS.get(runtime)().export(request, folder / "out")
    return RUNTIMES.get(runtime)().open(artifact, folder / "out"), images, program.module()(images).detach().numpy()


@pytest.mark.parametrize(
    ("runtime", "activation"), [(runtime, activation) for runtime in ("openvino", "tensorrt") for activation in (nn.Hardswish(), nn.SiLU())]
)
def test_a_kernel_that_computes_both_rounds_after_the_activation_alone(runtime: str, activation: nn.Module) -> None:
    program, images = program_of(Net(activation))
    rendered = render(program, calibrate(program, [(images,)]), rules_for(runtime), STATIC)
    nodes = [node for node in rendered.module.graph.nodes if "hardswish" in str(node.target) or "silu" in str(node.target)]
    assert len(nodes) == 2
    assert all("conv2d" in str(node.args[0].target) for node in nodes)
    assert all("quantize_per_tensor" in str(user.target) for node in nodes for user in node.users)
    assert not any("hardswish" in str(op["op"]) or "silu" in str(op["op"]) for op in rendered.float_ops)


class Gated(nn.Module):
    """Convolutions with silu, a gate of a sigmoid in the middle, and a sigmoid of what the model answers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 3)

    def forward(self, image: Tensor) -> Tensor:
        wide = F.silu(self.first(image))
        wide = wide * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(wide, 1)))
        return torch.sigmoid(self.last(wide).mean((2, 3)))


@pytest.mark.parametrize(("runtime", "package"), [("onnxruntime", "onnxruntime"), ("litert", "litert_torch")])
def test_sigmoids_between_integer_layers_compute_in_integers_and_at_the_end_in_float(runtime: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    program, images = program_of(Gated())
    rendered = render(program, calibrate(program, [(images,)]), rules_for(runtime), STATIC)
    assert [(op["op"], op["count"]) for op in rendered.float_ops if op["op"] != "aten.mean"] == [("aten.sigmoid", 1)]
    gates = [node for node in rendered.module.graph.nodes if node.target == torch.ops.aten.sigmoid.default]
    *silu, gate, last = ([user.args[1] for user in node.users if "quantize" in str(user.target)] for node in gates)
    assert silu == ([[1 / 256]] if runtime == "litert" else []) and not last  # ONNX Runtime has one kernel for a silu, of floats
    assert gate == [1 / 256] if runtime == "litert" else gate[0] < 1 / 255  # LiteRT's has one scale; calibration saw no more than 0.8 or so
    session, images, exact = opened(runtime, Gated(), tmp_path)
    with session:
        found, kernels = session.run({"image": images.numpy()})["logits"], session.kernels()
    assert np.square(found - exact).mean() < 1e-3 * np.square(exact).mean()
    narrow = [
        op for op in kernels.ops if op["type"] == "int8" and ("sigmoid" in str(op["op"]).lower() or "logistic" in str(op["op"]).lower())
    ]
    assert sum(int(op.get("count", 1)) for op in narrow) == (2 if runtime == "litert" else 1)
    assert runtime == "litert" or [op["op"] for op in kernels.ops].count("QuickGelu") == 1


class Mobile(nn.Module):
    """Convolutions with hard-swish, squeeze and excitation with a hard sigmoid, and a mean before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        wide = F.hardswish(self.first(image))
        wide = wide * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(wide, 1)))
        return self.head(F.hardswish(self.last(wide)).mean((2, 3)))


def test_hard_swish_and_squeeze_and_excitation_compute_in_integers_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    session, images, exact = opened("onnxruntime", Mobile(), tmp_path)
    with session:
        found, kernels = session.run({"image": images.numpy()})["logits"], session.kernels()
    assert np.square(found - exact).mean() < 2e-3 * np.square(exact).mean()
    operators = Counter(str(op["op"]) for op in kernels.ops)
    assert (operators["QLinearGlobalAveragePool"], operators["QLinearMul"], operators["QLinearAdd"]) == (2, 3, 3)
    assert not operators.keys() & {"HardSigmoid", "ReduceMean", "Mul", "Add", "GlobalAveragePool"}


@pytest.mark.parametrize(
    ("runtime", "package"), [("openvino", "openvino"), ("tensorrt", "tensorrt_rtx_bindings"), ("litert", "litert_torch")]
)
@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.SiLU()], ids=["hard-swish", "silu"])
def test_runtimes_answer_as_the_float_model_does(runtime: str, package: str, activation: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip(package)
    session, images, exact = opened(runtime, Net(activation), tmp_path)
    with session:
        found = session.run({"image": images.numpy()})["logits"]
    assert np.square(found - exact).mean() < 1e-3 * np.square(exact).mean()


@pytest.mark.parametrize(
    ("runtime", "activation"),
    [("onnxruntime", nn.LeakyReLU(0.2)), ("litert", nn.LeakyReLU(0.2)), ("litert", nn.Tanh())],
    ids=["leaky-onnxruntime", "leaky-litert", "tanh-litert"],
)
def test_activations_with_integer_kernels_compute_in_integers(runtime: str, activation: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip({"litert": "litert_torch"}.get(runtime, runtime))
    session, images, exact = opened(runtime, Net(activation), tmp_path)
    with session:
        found, kernels = session.run({"image": images.numpy()})["logits"], session.kernels()
    assert np.square(found - exact).mean() < 1e-3 * np.square(exact).mean()
    name = "tanh" if isinstance(activation, nn.Tanh) else "leaky"
    assert {op["type"] for op in kernels.ops if name in str(op["op"]).lower()} == {"int8"}


@pytest.mark.parametrize(
    "activation",
    [nn.Hardswish(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.2), nn.Tanh()],
    ids=["hard-swish", "gelu", "silu", "leaky", "tanh"],
)
def test_activations_do_not_cut_the_graph_that_xnnpack_takes(activation: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    from ai_edge_litert.interpreter import Interpreter

    opened("litert", Net(activation), tmp_path)[0].close()
    interpreter = Interpreter(str(next((tmp_path / "out").glob("*.tflite"))), num_threads=1)
    interpreter.allocate_tensors()
    assert [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE") == 1
