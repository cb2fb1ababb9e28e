"""Modes of exported graphs, and programs that become modules and programs again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from edgepress.compress.train import set_training, to_program, trainable
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import conv, mlp, program


def test_an_exported_batch_norm_trains_as_in_eager_mode() -> None:
    eager = conv()
    eager.drop.p = 0.0
    graph = trainable(program(copy.deepcopy(eager), torch.randn(2, 3, 8, 8)))
    eager.train()
    set_training(graph, True)
    for _ in range(3):
        x = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(graph(x), eager(x))
    torch.testing.assert_close(graph.norm.running_var, eager.norm.running_var)
    assert not torch.equal(graph.norm.running_mean, torch.zeros(8))
    eager.eval()
    set_training(graph, False)
    torch.testing.assert_close(graph(x), eager(x))


def test_an_exported_dropout_drops_its_own_share_in_train_mode_alone() -> None:
    graph = trainable(program(nn.Sequential(nn.Dropout(0.1)), torch.ones(2, 8)))
    ones = torch.ones(100, 200)
    assert torch.equal(graph(ones), ones)
    set_training(graph, True)
    assert (graph(ones) == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    set_training(graph, False)
    assert torch.equal(graph(ones), ones)


class Stack(nn.Module):
    """Kinds of layers whose graphs hold a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.BatchNorm2d(4, affine=False)
        self.stateless = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True, affine=True)
        self.drop = nn.Dropout2d(0.5)
        self.slope = nn.RReLU()
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.drop(self.instance(self.stateless(self.free(x)))))
        return self.lstm(x.mean(3))[0]


def test_every_kind_of_layer_with_a_mode_matches_eager_mode_in_both() -> None:
    eager = Stack()
    graph = trainable(program(eager, torch.randn(2, 4, 8, 8)))
    x = torch.randn(3, 4, 8, 8)
    for training in (True, False, True):
        eager.train(training)
        set_training(graph, training)
        torch.manual_seed(5)
        wanted = eager(x)
        torch.manual_seed(5)
        torch.testing.assert_close(graph(x), wanted)


def test_a_norm_exported_without_momentum_keeps_its_statistics() -> None:
    graph = trainable(program(nn.BatchNorm1d(4, momentum=None), torch.randn(2, 4)))
    before = graph.running_mean.clone()
    set_training(graph, True)
    graph(torch.randn(16, 4) + 3)
    assert torch.equal(graph.running_mean, before)


def test_graphs_inside_plain_modules_and_traced_modules_are_switched_too() -> None:
    outer = nn.Sequential(
        trainable(program(nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 8))), symbolic_trace(nn.Sequential(nn.Dropout(0.5)))
    )
    set_training(outer, True)
    assert outer.training and (outer[0](torch.ones(40, 40)) == 0).any() and (outer[1](torch.ones(40, 40)) == 0).any()
    set_training(outer, False)
    assert not outer.training and torch.equal(outer(torch.ones(4, 8)), torch.ones(4, 8))


def test_a_trainable_copy_takes_gradients_and_leaves_the_program_alone() -> None:
    module = mlp().requires_grad_(False)
    original = program(module, torch.randn(2, 6))
    graph = trainable(original)
    graph(torch.randn(3, 6)).sum().backward()
    with torch.no_grad():
        for parameter in graph.parameters():
            assert parameter.grad is not None
            parameter.add_(1.0)
    for name, tensor in module.state_dict().items():
        assert torch.equal(original.state_dict[name], tensor)


def test_trained_weights_go_back_into_a_program_with_the_same_graph() -> None:
    original = program(conv(), torch.randn(2, 3, 8, 8))
    graph = trainable(original)
    set_training(graph, True)
    graph(torch.randn(8, 3, 8, 8)).square().mean().backward()
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.sub_(parameter.grad)
    trained = to_program(graph, original)
    set_training(graph, False)
    x = torch.randn(7, 3, 8, 8)
    assert torch.equal(trained.module()(x), graph(x))
    assert not torch.equal(trained.module()(x), original.module()(x))
    assert str(trained.graph_signature) == str(original.graph_signature)


def test_weights_of_another_model_do_not_go_into_a_program() -> None:
    original = program(mlp(), torch.randn(2, 6))
    with pytest.raises(TrainingError, match=r"'0\.weight' of the trained module has shape \(9, 6\)"):
        to_program(nn.Sequential(nn.Linear(6, 9)), original)
