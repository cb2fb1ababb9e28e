"""Activation checkpointing: the same training with fewer activations kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.train import TrainConfig, set_training, task_loss, train, trainable
from edgepress.compress.training.memory import checkpointed
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import conv, images, program, vectors


class Blocks(nn.Module):
    """Twelve blocks with batch norm and dropout, and a residual around each."""

    def __init__(self, kind: type[nn.Module] = nn.Sequential) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.1)) for _ in range(12)]
        self.blocks = kind(parts) if kind is nn.ModuleList else kind(*parts)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = block(x)
            y += x  # in place, as many nets save memory
            x = y
        return x.mean((2, 3))


def passed(module: nn.Module, enabled: bool) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Gradients, state and bytes kept for the backward pass of one step."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    set_training(module, True)
    torch.manual_seed(1)
    with checkpointed(module, enabled), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(torch.randn(8, 3, 16, 16)).square().mean()
    loss.backward()
    return [p.grad for p in module.parameters() if p.grad is not None], module.state_dict(), sum(kept.values())


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
@pytest.mark.parametrize("exported", [False, True])
def test_gradients_and_running_statistics_are_those_of_the_ordinary_pass(kind: type[nn.Module], exported: bool) -> None:
    def make() -> nn.Module:
        return trainable(program(Blocks(kind), torch.randn(2, 3, 16, 16))) if exported else Blocks(kind)

    gradients, state, _ = passed(make(), False)
    again, state_again, _ = passed(make(), True)
    assert len(gradients) == len(again) == 48
    for one, two in zip(gradients, again, strict=True):
        torch.testing.assert_close(two, one)
    for name, tensor in state.items():
        torch.testing.assert_close(state_again[name], tensor)


def test_the_context_leaves_the_module_as_it_was() -> None:
    module = Blocks()
    before = module.blocks[0].forward
    with checkpointed(module, True):
        assert module.blocks[0].forward != before
    assert module.blocks[0].forward == before and "forward" not in vars(module.blocks[0])


@pytest.mark.parametrize("exported", [False, True])
def test_fewer_activations_are_kept(exported: bool) -> None:
    make = (lambda: trainable(program(Blocks(), torch.randn(2, 3, 16, 16)))) if exported else Blocks
    assert passed(make(), True)[2] < 0.6 * passed(make(), False)[2]


def test_a_training_with_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    config, weights = TrainConfig(epochs=2, batch=32, lr=0.1), []
    for enabled in (False, True):
        graph = trainable(program(conv(), torch.randn(2, 3, 8, 8)))
        train(graph, images(), task_loss(), replace(config, activation_checkpointing=enabled), tmp_path / str(enabled))
        weights.append(graph.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


def test_a_module_without_blocks_is_told(tmp_path: Path) -> None:
    config = TrainConfig(batch=32, activation_checkpointing=True)
    with pytest.raises(TrainingError, match="the model has no"):
        train(nn.Linear(6, 3), vectors(), task_loss(), config, tmp_path)
