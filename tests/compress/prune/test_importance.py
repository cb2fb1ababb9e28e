"""Scores of units against their definitions, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune.importance import CRITERIA, FROM_DATA, FROM_LOSS, Criterion, normalise, scores, without_scale
from edgepress.compress.prune.structure import Family, Structure, analyse
from edgepress.targets.errors import PruneError

RAW = "none"


class Net(nn.Module):
    """One family of 6 channels through conv1, bn and conv2 into a flattened linear layer's 2 x 4; one of 4 without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(16, 5)
        nn.init.uniform_(self.bn.weight, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x))))).flatten(1))


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def exported(net: nn.Module) -> ExportedProgram:
    return torch.export.export(net.eval(), (images(),), dynamic_shapes=({0: Dim("batch", min=1)},))


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net) -> ExportedProgram:
    return exported(net)


@pytest.fixture(scope="module")
def structure(program: ExportedProgram) -> Structure:
    return analyse(program)


def units(structure: Structure, name: str) -> list[int]:
    return list(next(family for family in structure.families if family.name == name).units)


def loss(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


BATCHES = [((images(4, seed),), torch.arange(4)) for seed in (1, 2)]


def every(net: Net) -> dict[str, list[Tensor]]:
    """For each family: its weights, with the units in dimension 0."""
    return {
        "conv1": [net.conv1.weight, net.bn.weight[:, None], net.conv2.weight.movedim(1, 0)],
        "conv2": [net.conv2.weight, net.head.weight.view(5, 4, 4).movedim(1, 0)],
    }


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_is_the_norm_over_all_layers_of_a_unit(net: Net, program: ExportedProgram, structure: Structure, power: int) -> None:
    found = scores(program, structure, Criterion(f"l{power}", RAW))
    for name, weights in every(net).items():
        sums = sum(weight.detach().double().abs().pow(power).flatten(1).sum(1) for weight in weights)
        extra = net.bn.bias.detach().double().abs().pow(power) if name == "conv1" else 0
        expected = (sums + extra).pow(1 / power).numpy()
        np.testing.assert_allclose(found[units(structure, name)], expected, rtol=1e-6)
    assert found.dtype == np.float64 and found.shape == (structure.unit_count,)


def test_batch_norm_scales_fall_back_to_magnitude_where_there_are_none(net: Net, program: ExportedProgram, structure: Structure) -> None:
    found = scores(program, structure, Criterion("bn_scale", RAW))
    np.testing.assert_allclose(found[units(structure, "conv1")], net.bn.weight.detach().abs().double().numpy())
    without = units(structure, "conv2")
    np.testing.assert_array_equal(found[without], scores(program, structure, Criterion("l2", RAW))[without])
    assert [family.name for family in without_scale(program, structure)] == ["conv2"]


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_scores_from_gradients_are_accumulated_over_batches(
    net: Net, program: ExportedProgram, structure: Structure, criterion: str
) -> None:
    found = scores(program, structure, Criterion(criterion, RAW), BATCHES, loss)
    expected = torch.zeros(4, dtype=torch.float64)
    for (x,), labels in BATCHES:
        weights = [net.conv2.weight, net.conv2.bias, net.head.weight]
        gradients = torch.autograd.grad(loss(net(x), labels), weights)
        conv, bias, head = ((w * g).detach().double() for w, g in zip(weights, gradients, strict=True))
        pieces = [conv.flatten(1), bias[:, None], head.view(5, 4, 4).movedim(1, 0).flatten(1)]
        each = torch.cat(pieces, dim=1)
        expected += each.sum(1) ** 2 if criterion == "taylor" else (each**2).sum(1)
    np.testing.assert_allclose(found[units(structure, "conv2")], expected.numpy(), rtol=1e-4)


def test_activation_is_the_mean_magnitude_that_the_next_layer_reads(net: Net, program: ExportedProgram, structure: Structure) -> None:
    found = scores(program, structure, Criterion("activation", RAW), BATCHES)
    with torch.no_grad():
        read = torch.cat([torch.relu(net.bn(net.conv1(x))) for (x,), _ in BATCHES])
    np.testing.assert_allclose(found[units(structure, "conv1")], read.abs().mean((0, 2, 3)).double().numpy(), rtol=1e-5)


def test_a_dead_unit_scores_lowest_by_every_criterion_but_chance(structure: Structure) -> None:
    dead = Net()
    with torch.no_grad():
        dead.conv1.weight[2], dead.conv1.bias[2], dead.bn.weight[2], dead.bn.bias[2], dead.conv2.weight[:, 2] = 0, 0, 0, 0, 0
    program = exported(dead)
    found = {name: scores(program, structure, name, BATCHES, loss)[units(structure, "conv1")] for name in CRITERIA}
    for name, values in found.items():
        assert name == "random" or (values.argmin() == 2 and values[2] == pytest.approx(0, abs=1e-12))


def test_chance_follows_the_seed(program: ExportedProgram, structure: Structure) -> None:
    first, again, other = (scores(program, structure, "random", seed=seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_scores_are_normalised_per_family(program: ExportedProgram, structure: Structure) -> None:
    mean, largest = (scores(program, structure, Criterion("l2", how)) for how in ("mean", "max"))
    for family in structure.families:
        assert mean[list(family.units)].mean() == pytest.approx(1)
        assert largest[list(family.units)].max() == pytest.approx(1)
    zeros = np.zeros(structure.unit_count)
    assert (normalise(structure, zeros) == 0).all()


def test_the_program_is_left_as_it_was(net: Net, program: ExportedProgram, structure: Structure) -> None:
    before = {name: value.clone() for name, value in program.state_dict.items()}
    scores(program, structure, "taylor", BATCHES, loss)
    assert all(torch.equal(before[name], value) and value.grad is None for name, value in program.state_dict.items())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True] * len(list(net.parameters()))


def test_frozen_parameters_can_be_scored(structure: Structure) -> None:
    frozen = exported(Net().requires_grad_(False))
    assert (scores(frozen, structure, "taylor", BATCHES, loss) > 0).all()


def test_missing_samples_and_losses_are_named(program: ExportedProgram, structure: Structure) -> None:
    for name in FROM_DATA:
        with pytest.raises(PruneError, match=f"'{name}' needs samples"):
            scores(program, structure, name, None, loss)
        with pytest.raises(PruneError, match="no samples"):
            scores(program, structure, name, [], loss)
    for name in FROM_LOSS:
        with pytest.raises(PruneError, match=f"'{name}' needs a loss"):
            scores(program, structure, name, BATCHES)
    with pytest.raises(PruneError, match=r"'tailor'.*'taylor'"):
        Criterion("tailor")
    with pytest.raises(PruneError, match=r"'taylor' gives \d+ scores that are not finite"):
        scores(program, structure, "taylor", BATCHES, lambda outputs, labels: loss(outputs, labels) * float("inf"))


def test_families_are_those_of_the_structure(structure: Structure) -> None:
    assert all(isinstance(family, Family) for family in structure.families)
    assert sorted(len(family.units) for family in structure.families) == [4, 6]
