"""Layers and tensors of small values keep their 8 bits: outputs in metres or inputs in volts are as good as any."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate, render
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "litert")
SCHEMES = {
    "static": Scheme("int8", "static"),
    "weights": Scheme("int8-weights", "weights"),
    "narrow": Scheme("int8", "static", weight_bits=8),
}


def net(inputs: float = 1.0, outputs: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    """Two layers and samples, in units of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    with torch.no_grad():
        model[0].weight /= inputs
        model[2].weight *= outputs
        model[2].bias *= outputs
    return model, torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) * inputs


def decibels(model: nn.Module, x: Tensor, runtime: str, scheme: Scheme) -> float:
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    statistics = calibrate(program, [(x,)]) if scheme.calibrated else None
    with torch.no_grad():
        expected, found = model(x).double(), render(program, statistics, rules_for(runtime), scheme).module(x).double()
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1e-5, 1.0), (1.0, 1e-4), (1e3, 1.0)], ids=["small inputs", "small outputs", "large inputs"]
)
def test_noise_does_not_depend_on_units(inputs: float, outputs: float, runtime: str, scheme: Scheme) -> None:
    usual = decibels(*net(), runtime, scheme)
    assert usual > 30
    assert decibels(*net(inputs, outputs), runtime, scheme) > usual - 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_biases_of_channels_without_weights_stay(runtime: str) -> None:
    model, x = net()
    with torch.no_grad():
        model[2].weight[3], model[2].weight[4], model[2].bias[3:5] = 0.0, 1e-12, 5.0
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    rendered = render(program, calibrate(program, [(x,)]), rules_for(runtime), Scheme("int8", "static")).module
    with torch.no_grad():
        torch.testing.assert_close(rendered(x)[:, 3:5], torch.full((256, 2), 5.0), atol=0.05, rtol=0)
    scales = [tensor for name, tensor in rendered.named_buffers() if "scale" in name and tensor.numel() == 16]
    assert scales and float(scales[0][3:5].min()) * 0.02 * 2**31 > 5.0  # as a 32-bit multiple of both scales
