"""Quantization-aware training: it simulates what the rendering computes, and buys back what coarse weights lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.quantize import Statistics, calibrate, render
from edgepress.compress.quantize.qat import simulate
from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for

STATIC = Scheme("int8", "static")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")


class Shapes(nn.Module):
    """Tells four patterns in noisy 8x8 images apart: two convolutions with batch norms, a sum, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.second = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 8)."""
        x = F.relu(self.first(self.stem(x)))
        x = F.relu(x + self.second(self.body(x)))
        return self.head(x.mean((2, 3)))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (count,), generator=random)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    angles = labels * torch.pi / 8
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=random)
    waves = torch.sin(grid[0] * torch.cos(angles)[:, None, None] * 1.5 + grid[1] * torch.sin(angles)[:, None, None] * 1.5 + phase)
    return (waves + 0.9 * torch.randn(count, 8, 8, generator=random)).unsqueeze(1), labels


def accuracy(module: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((module(data[0]).argmax(1) == data[1]).float().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedProgram, Statistics]:
    torch.manual_seed(0)
    module = Shapes()
    data = torch.utils.data.TensorDataset(*samples(2000, 1))
    train(module, data, task_loss(), TrainConfig(epochs=8, batch=64, lr=0.1), tmp_path_factory.mktemp("float"))
    module.eval()
    program = torch.export.export(module, (samples(2, 0)[0],), dynamic_shapes=({0: Dim("batch", min=1)},))
    return program, calibrate(program, [(samples(512, 2)[0],)])


def coarse(rules: QuantRules) -> QuantRules:
    """Three bits, one scale per weight tensor: made to hurt."""
    return replace(rules, weight_min=-3, weight_max=3, per_channel=frozenset())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_before_training_the_simulation_computes_what_the_rendering_does(trained: tuple[ExportedProgram, Statistics], runtime: str) -> None:
    program, statistics = trained
    rules = rules_for(runtime)
    inputs = samples(64, 3)[0]
    with torch.no_grad():
        simulated = simulate(program, statistics, rules, STATIC).module(inputs)
        rendered = render(program, statistics, replace(rules, smooth=False), STATIC).module(inputs)
        exact = program.module()(inputs)
    assert (simulated - rendered).abs().max() < 0.05 * (rendered - exact).abs().max() + 1e-4


def test_training_buys_back_at_least_half_of_what_coarse_weights_lose(trained: tuple[ExportedProgram, Statistics], tmp_path: Path) -> None:
    program, statistics = trained
    rules, judged = coarse(rules_for("onnxruntime")), samples(2000, 4)
    whole = accuracy(program.module(), judged)
    plain = accuracy(render(program, statistics, rules, STATIC).module, judged)
    assert whole - plain > 0.05, "the case does not hurt"
    simulation = simulate(program, statistics, rules, STATIC)
    data = torch.utils.data.TensorDataset(*samples(2000, 1))
    train(simulation.module, data, task_loss(), TrainConfig(epochs=6, batch=64, lr=0.02), tmp_path)
    after = simulation.program(program)
    again = calibrate(after, [(samples(512, 2)[0],)])
    assert whole - accuracy(render(after, again, rules, STATIC).module, judged) < 0.5 * (whole - plain)


def test_the_program_has_the_trained_weights_its_inputs_and_a_dynamic_batch(trained: tuple[ExportedProgram, Statistics]) -> None:
    program, statistics = trained
    simulation = simulate(program, statistics, rules_for("litert"), STATIC)
    with torch.no_grad():
        for parameter in simulation.module.parameters():
            parameter.mul_(1.01)
    after = simulation.program(program)
    assert after.graph_signature.user_inputs == program.graph_signature.user_inputs
    for batch in (1, 5):
        outputs = after.module()(samples(batch, 5)[0])
        assert outputs.shape == (batch, 8) and not torch.equal(outputs, program.module()(samples(batch, 5)[0]))


def test_the_original_program_is_left_as_it_was(trained: tuple[ExportedProgram, Statistics]) -> None:
    program, statistics = trained
    before = {name: value.clone() for name, value in program.state_dict.items()}
    simulation = simulate(program, statistics, rules_for("onnxruntime"), STATIC)
    with torch.no_grad():
        for parameter in simulation.module.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict.items())


def test_every_weight_of_a_transformer_is_trained() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    program = torch.export.export(block, (torch.randn(2, 5, 16),), dynamic_shapes=({0: Dim("batch", min=1)},))
    statistics = calibrate(program, [(torch.randn(8, 5, 16),)])
    simulation = simulate(program, statistics, rules_for("onnxruntime"), STATIC)
    simulation.module(torch.randn(4, 5, 16)).square().mean().backward()
    names = [name for name, parameter in simulation.module.named_parameters() if parameter.grad is None]
    assert names == [] and sum(p.numel() for p in simulation.module.parameters()) == sum(p.numel() for p in block.parameters())
