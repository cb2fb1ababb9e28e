"""Complex tensors and Fourier transforms become real ones with the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepress.compress.portable import portable
from edgepress.compress.quantize import calibrate, float_module, plain_model
from edgepress.compress.quantize.complex_parts import has_complex

BATCH = 5
BOTH: dict[str, Any] = {"normalized": True, "onesided": False}
WINDOW = torch.hann_window(12)
FILTER = torch.randn(3, 9, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
TURNS = torch.polar(torch.ones(6, 8), torch.outer(torch.arange(6.0), torch.arange(8.0) / 8))
MIX = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(4))


class Computes(nn.Module):
    """A function of (n, 3, 16) tensors, with constants that are buffers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, tensor in {"window": WINDOW, "filter": FILTER, "turns": TURNS, "mix": MIX}.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def exported(function: Callable[..., Tensor]) -> tuple[torch.export.ExportedProgram, Tensor]:
    x = torch.randn(BATCH, 3, 16, generator=torch.Generator().manual_seed(1))
    return portable(torch.export.export(Computes(function).eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))), x


def is_same_without_complex_numbers(function: Callable[..., Tensor]) -> None:
    program, x = exported(function)
    module = float_module(program)
    assert not has_complex(module)
    for count in (BATCH, 2, 1):
        with torch.no_grad():
            found, expected = module(x[:count]), Computes(function)(x[:count])
        torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(1) - 0.5)


CASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "power spectrum": lambda m, x: torch.fft.rfft(x).abs().pow(2),
    "phase": lambda m, x: torch.angle(complex_of(x) + 3),
    "filter": lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * m.filter, n=16),
    "filter in two dimensions": lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x) * m.filter, s=(3, 16)),
    "mixing tokens": lambda m, x: torch.fft.fft2(x).real,
    "all dimensions": lambda m, x: torch.fft.ifftn(complex_of(x), dim=(1, 2)).imag,
    "autocorrelation": lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.conj(torch.fft.rfft(x.flip(1)))),
    "convolution by zeros behind": lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=32) * torch.fft.rfft(x.flip(1), n=32), n=32)[..., :16],
    "fewer samples": lambda m, x: torch.fft.fft(x, n=7).imag,
    "hermitian": lambda m, x: torch.fft.hfft(complex_of(x), n=30),
    "inverse hermitian": lambda m, x: torch.fft.ihfft(x).imag,
    "shifted": lambda m, x: torch.fft.fftshift(torch.fft.fft(x), dim=-1).real,
    "of integers": lambda m, x: torch.fft.rfft((x * 4).round().long().float()).real,
    "rotary embedding": lambda m, x: torch.view_as_real(torch.view_as_complex(x.reshape(-1, 1, 3, 8, 2)[:, :, :1]) * m.turns).flatten(2),
    "parts": lambda m, x: torch.stack([complex_of(x).real, complex_of(x).imag], -1),
    "cut and joined": lambda m, x: torch.view_as_real(torch.cat([complex_of(x)[..., 8:], complex_of(x)[..., :8]], -1).transpose(1, 2)),
    "pieces": lambda m, x: (complex_of(x).chunk(2, -1)[1] * complex_of(x).chunk(2, -1)[0]).imag,
    "sums": lambda m, x: torch.view_as_real((complex_of(x) + 2.0 - complex_of(x).conj() * 0.5).sum(1)),
    "a number times i": lambda m, x: torch.view_as_real(torch.exp(1j * x) * 2.0),
    "real and i times real": lambda m, x: (torch.cos(x) + 1j * torch.sin(x)).abs(),
    "i less real": lambda m, x: torch.view_as_real(1j * x - x),
    "number less complex": lambda m, x: torch.view_as_real((2.0 + 1j) - complex_of(x)),
    "exponential": lambda m, x: torch.view_as_real(torch.exp(complex_of(x) * 0.3)),
    "quotient": lambda m, x: torch.view_as_real(complex_of(x) / (complex_of(x) + 4.0)),
    "quotient by real": lambda m, x: torch.view_as_real(complex_of(x) / (x.abs() + 1)),
    "product of matrices": lambda m, x: torch.view_as_real(complex_of(x).transpose(1, 2) @ m.mix),
    "einsum": lambda m, x: torch.view_as_real(torch.einsum("bct,co->bot", complex_of(x), m.mix)),
    "written into zeros": lambda m, x: torch.fft.irfft(_low(torch.fft.rfft(x)), n=16),
    "polar": lambda m, x: torch.view_as_real(torch.polar(x.abs(), x)),
    "short-time": lambda m, x: torch.stft(x.flatten(1), 12, 5, 12, m.window, return_complex=True).abs(),
    "short-time, no window": lambda m, x: torch.view_as_real(torch.stft(x.flatten(1), 16, return_complex=True)),
    "short-time, short window": lambda m, x: torch.stft(x.flatten(1), 16, 4, 12, m.window, center=False, return_complex=True).real,
    "short-time, silent window": lambda m, x: torch.stft(x.flatten(1), 12, 5, 12, m.window * 0, return_complex=True).real,
    "short-time, both sides": lambda m, x: (
        torch.stft(x.flatten(1), 12, 4, 12, m.window, normalized=True, onesided=False, return_complex=True).imag
    ),
    "short-time and back": lambda m, x: torch.istft(
        torch.stft(x.flatten(1), 12, 3, 12, m.window, return_complex=True) * 2, 12, 3, 12, m.window, length=40
    ),
    "back from both sides": lambda m, x: torch.istft(
        torch.stft(x.flatten(1), 12, 3, 12, m.window, **BOTH, return_complex=True), 12, 3, 12, m.window, **BOTH
    ),
}


def _low(spectrum: Tensor) -> Tensor:
    """As Fourier neural operators write it."""
    kept = torch.zeros(spectrum.shape[0], 3, 9, dtype=torch.complex64)
    kept[:, :, :4] = spectrum[:, :, :4] * (1 + 2j)
    return kept


@pytest.mark.parametrize("function", CASES.values(), ids=CASES)
def test_what_computes_with_complex_numbers_computes_the_same_with_real_ones(function: Callable[..., Tensor]) -> None:
    is_same_without_complex_numbers(function)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]),
    size=st.integers(2, 19),
    dim=st.sampled_from([1, 2, -1, -2]),
    norm=st.sampled_from(["forward", "backward", "ortho"]),
)
def test_transforms_of_every_size_and_norm(name: str, size: int, dim: int, norm: str) -> None:
    of_real = name in ("rfft", "ihfft")

    def function(_: nn.Module, x: Tensor) -> Tensor:
        result = getattr(torch.fft, name)(x if of_real else complex_of(x), n=size, dim=dim, norm=norm)
        return torch.stack([result.real, result.imag], -1) if result.is_complex() else result

    is_same_without_complex_numbers(function)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["fftn", "ifftn", "rfftn", "irfftn"]),
    dims=st.sampled_from([(1, 2), (2, 1), (-2, -1), (2,)]),
    norm=st.sampled_from(["forward", "backward", "ortho"]),
)
def test_transforms_of_several_dimensions(name: str, dims: tuple[int, ...], norm: str) -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        result = getattr(torch.fft, name)(x if name == "rfftn" else complex_of(x), dim=dims, norm=norm)
        return torch.stack([result.real, result.imag], -1) if result.is_complex() else result

    is_same_without_complex_numbers(function)


def test_layers_with_the_same_transform_share_its_matrix() -> None:
    program, _ = exported(lambda m, x: torch.fft.fft2(torch.fft.fft2(x).real).real)
    names = [name for name, _ in float_module(program).named_buffers() if name.startswith("fourier")]
    assert len(names) == 2  # of 16 samples, real, and of 3, complex


def test_what_has_no_rule_is_left_as_it_is() -> None:
    program, x = exported(lambda m, x: torch.log(complex_of(x) + 9).real + torch.fft.rfft(x).abs().sum())
    module = float_module(program)
    assert has_complex(module) and not any("part" in node.name for node in module.graph.nodes)
    torch.testing.assert_close(module(x), program.module()(x))


def test_a_model_without_complex_numbers_is_lowered_as_it_was_traced() -> None:
    program, _ = exported(lambda m, x: x.relu())
    assert plain_model(program) is program


def test_transforms_are_calibrated_and_never_in_integers() -> None:
    from edgepress.compress.quantize import render
    from edgepress.targets.nouns import Scheme
    from edgepress.targets.rules import rules_for

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.fft.fft2(self.first(x)).real)

    x = torch.randn(32, 3, 16, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(Mixer().eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)))
    statistics = calibrate(program, [(x,)])
    for runtime in ("onnxruntime", "openvino", "tensorrt", "coreml", "litert"):
        for scheme in (Scheme("int8", "static"), Scheme("int8-weights", "weights")):
            rendered = render(program, statistics if scheme.calibrated else None, rules_for(runtime), scheme)
            transforms = [node for node in rendered.module.graph.nodes if "fourier" in str(node.args)]
            assert len(transforms) == 2
            assert all("quantize" not in str(item) for node in transforms for item in node.all_input_nodes)
            assert any("Fourier transform" in str(line["reason"]) for line in rendered.float_ops)
