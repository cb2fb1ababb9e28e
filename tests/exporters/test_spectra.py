"""Models that read sounds by their spectra, or compute with complex numbers, run on every target and answer as they do in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.portable import portable
from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes import RUNTIMES

RUNTIME_PACKAGES = [
    ("onnxruntime", "onnxruntime"),
    ("openvino", "openvino"),
    ("litert", "litert_torch"),
    ("coreml", "coremltools"),
    ("tensorrt", "tensorrt_rtx_bindings"),
]
SCHEMES = [Scheme("fp32", "float"), Scheme("int8", "static")]
WEIGHTS = Scheme("int8-weights", "weights")
DYNAMIC = Scheme("int8", "dynamic")


class Keywords(nn.Module):
    """Log-mel energies of a sound, and a small net that reads them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("window", torch.hann_window(80))
        bands = torch.relu(1 - (torch.arange(65)[:, None] - torch.linspace(2, 60, 12)).abs() / 6)
        self.register_buffer("bands", bands)
        self.body = nn.Sequential(nn.Conv1d(12, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 128, 40, 80, self.window, return_complex=True)
        energies = torch.matmul(spectrum.abs().square().transpose(1, 2), self.bands)
        features = torch.log(energies + 1e-6).transpose(1, 2) / 4
        return self.head(self.body(features).mean(2))


class Mixer(nn.Module):
    """Tokens mixed in the frequency domain, one filter of complex numbers per frequency, and a rotary embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 6)
        self.filter = nn.Parameter(torch.randn(9, 32, dtype=torch.complex64) / 4)
        self.register_buffer("turns", torch.polar(torch.ones(16, 16), torch.outer(torch.arange(16.0), torch.arange(16.0) / 16)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = hidden + torch.fft.irfft(torch.fft.rfft(hidden, dim=1, norm="ortho") * self.filter, n=16, dim=1, norm="ortho")
        turned = torch.view_as_real(torch.view_as_complex(hidden.reshape(-1, 16, 16, 2)) * self.turns).flatten(2)
        return self.last(torch.relu(turned).mean(1))


def sounds() -> Tensor:
    """(64, 1200), loud and quiet ones of several colours."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(64, 1200, generator=generator)
    return (steps.cumsum(1) * 0.01 + steps * torch.linspace(0, 0.2, 64)[:, None]) * torch.logspace(-2, 0, 64)[torch.randperm(64)][:, None]


CASES = {"keywords": (Keywords, sounds), "mixer": (Mixer, lambda: torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(1)))}


def noise_of(case: str, runtime: str, scheme: Scheme, folder: Path) -> tuple[float, list[str]]:
    """The file's error over how far the answers lie apart, squared, in decibels; and its reasons for floats."""
    make, samples = CASES[case]
    model, x = make().eval(), samples()
    program = portable(torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)))
    torch.export.save(program, folder / "model.pt2")
    if scheme.calibrated:
        calibrate(program, [(x,)]).save(folder / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, *x.shape[1:])),), (TensorSpec("y", "float32", (None, 6)),))
    statistics = folder / "statistics" if scheme.calibrated else None
    target = Target("cpu", runtime, "CPU", scheme.precision, {})
    request = ExportRequest(folder / "model.pt2", signature, statistics, target, scheme, (x[:4].numpy(),))
    artifact = EXPORTERS.get(runtime)().export(request, folder / "out")
    with RUNTIMES.get(runtime)().open(artifact, folder / "out") as session, torch.no_grad():
        found, expected = session.run({"x": x.numpy()})["y"], model(x).numpy()
    apart = np.square(expected - expected.mean(0)).sum()
    return float(10 * np.log10(np.square(found - expected).sum() / apart)), [str(line["reason"]) for line in artifact.float_ops]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@pytest.mark.parametrize(("runtime", "package"), RUNTIME_PACKAGES)
@pytest.mark.parametrize("case", CASES)
def test_files_answer_as_the_model(case: str, runtime: str, package: str, scheme: Scheme, tmp_path: Path) -> None:
    pytest.importorskip(package)
    noise, reasons = noise_of(case, runtime, scheme, tmp_path)
    assert noise < {"fp32": -90, "int8": -22}[scheme.precision]
    assert scheme.kind != "static" or any("Fourier transform" in reason for reason in reasons)


@pytest.mark.parametrize(("runtime", "package"), [RUNTIME_PACKAGES[1], RUNTIME_PACKAGES[2]])
def test_the_weights_that_make_energies_are_no_integers_either(runtime: str, package: str, tmp_path: Path) -> None:
    """OpenVINO rounds what a layer with integer weights reads."""
    pytest.importorskip(package)
    assert noise_of("keywords", runtime, WEIGHTS, tmp_path)[0] < -30


@pytest.mark.parametrize(("runtime", "package"), [RUNTIME_PACKAGES[0], RUNTIME_PACKAGES[2]])
def test_dynamic_files_leave_the_energies_in_float(runtime: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    noise, reasons = noise_of("keywords", runtime, DYNAMIC, tmp_path)
    assert noise < -25
    assert any("logarithm" in reason for reason in reasons)
