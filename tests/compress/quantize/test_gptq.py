"""GPTQ on layers with integer inputs: errors that later inputs make good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.layerwise import refine
from edgepress.targets.nouns import Scheme
from tests.compress.quantize.nets import outputs_of
from tests.compress.quantize.test_adaround import four_bits

STATIC = Scheme("int8", "static")


def program_of(module: nn.Module, inputs: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (inputs[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def correlated(*shape: int) -> torch.Tensor:
    """Inputs that have much in common, as those of real layers: the features of a sample, in images neighbours in space as well."""
    shared = torch.randn(shape[0], 1, *shape[2:]) + torch.randn(shape[0], *(1 for _ in shape[1:]))
    mixed = shared + 0.3 * torch.randn(shape)
    return torch.nn.functional.avg_pool2d(mixed, 3, 1, 1) if len(shape) == 4 else mixed


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 10), (512, 24)),
    "tokens": (lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12)), (64, 9, 16)),
    "convolution": (lambda: nn.Conv2d(8, 12, 3, padding=1), (32, 8, 10, 10)),
    "strided": (lambda: nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(0, 2), bias=False), (32, 6, 12, 12)),
    "grouped": (lambda: nn.Conv2d(12, 18, 3, groups=3, dilation=2), (32, 12, 12, 12)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8), (32, 8, 10, 10)),
}


def refined(name: str, seed: int = 0) -> list[tuple[Layer, Layer]]:
    """Every layer of a net before and after."""
    torch.manual_seed(seed)
    make, shape = NETS[name]
    module, inputs = make(), correlated(*shape)
    program, seen = program_of(module, inputs), []

    def look(layer: Layer) -> Layer:
        seen.append((layer, gptq(layer)))
        return seen[-1][1]

    refine(program, calibrate(program, [(inputs,)]), four_bits("onnxruntime"), STATIC, [(inputs,)], [look])
    return seen


@pytest.mark.parametrize("name", NETS)
def test_every_layer_answers_better_than_with_nearest_integers(name: str) -> None:
    for before, after in refined(name):
        assert after.error() < before.error()


@pytest.mark.parametrize(("shape", "width", "used"), [((600, 9, 16), 24, 56), ((600, 16, 10), 24, 32), ((600, 12), 24, 336)])
def test_no_more_samples_are_run_than_the_moments_of_a_layer_need(shape: tuple[int, ...], width: int, used: int) -> None:
    """Tokens give many positions each; features of a sample one, and 28 per input are wanted."""
    torch.manual_seed(0)
    inputs, taken = torch.randn(shape), 0
    program = program_of(nn.Linear(shape[-1], width), inputs)

    def counted() -> Iterator[tuple[torch.Tensor]]:
        nonlocal taken
        for piece in inputs.split(8):
            taken += len(piece)
            yield (piece,)

    refine(program, calibrate(program, [(inputs,)]), four_bits("onnxruntime"), STATIC, counted(), [gptq])
    assert taken == used


@pytest.mark.parametrize("name", ["linear", "convolution", "grouped"])
def test_samples_it_never_saw_gain_most_of_it_too(name: str) -> None:
    torch.manual_seed(1)
    make, shape = NETS[name]
    module, seen, judged = make(), correlated(*shape), correlated(*shape)
    program = program_of(module, seen)
    nearest = calibrate(program, [(seen,)])
    chosen = refine(program, nearest, four_bits("tensorrt"), STATIC, [(seen,)], [gptq])
    exact, plain, better = (
        outputs_of(model, (judged,))[0]
        for model in (program.module(), *(render(program, s, four_bits("tensorrt"), STATIC).module for s in (nearest, chosen)))
    )
    assert (better - exact).square().mean() < 0.8 * (plain - exact).square().mean()


@pytest.mark.parametrize("name", ["linear", "grouped"])
def test_zeros_stay_and_integers_keep_within_the_ends(name: str) -> None:
    before, _ = refined(name)[0]
    weight = torch.where(before.grid.weight.abs() < before.grid.scale, 0.0, before.grid.weight)
    grid = replace(before.grid, weight=weight)
    after = gptq(replace(before, grid=grid, rounded=grid.nearest))
    integers = (after.rounded / grid.scale).round()
    assert not torch.equal(after.rounded, grid.nearest)
    assert not integers[weight == 0].any() and bool((weight == 0).any())
    assert integers.abs().max() == 7


def test_a_part_of_many_positions_serves_as_well_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: dict[int, list[float]] = {}
    for most in (4, 10**6):
        monkeypatch.setattr("edgepress.compress.quantize.integer_gptq.MOST", most)
        errors[most] = [float(after.error() / before.error()) for before, after in refined("convolution")]
    assert errors[4] != errors[10**6]
    assert errors[4] == pytest.approx(errors[10**6], abs=0.1)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    torch.manual_seed(0)
    inputs = correlated(256, 16)
    inputs[:, 3:9] = 0
    program = program_of(nn.Linear(16, 6), inputs)
    statistics = calibrate(program, [(inputs,)])
    chosen = refine(program, statistics, four_bits("litert"), STATIC, [(inputs,)], [gptq])
    assert all(bool(torch.isfinite(torch.from_numpy(value)).all()) for value in chosen.corrections.values())


def test_what_is_no_linear_layer_and_no_plain_convolution_keeps_its_integers() -> None:
    torch.manual_seed(0)
    inputs, seen = torch.randn(8, 4, 20), []
    program = program_of(nn.Conv1d(4, 6, 3), inputs)

    def look(layer: Layer) -> Layer:
        seen.append(gptq(layer) is layer)
        return layer

    refine(program, calibrate(program, [(inputs,)]), four_bits("onnxruntime"), STATIC, [(inputs,)], [look])
    assert seen == [True]
