"""Training that makes whole units vanish."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune.sparsity import GroupPenalty, SparseObjective, SparsitySettings
from edgepress.compress.prune.structure import Structure, analyse
from edgepress.targets.errors import PruneError
from tests.compress.prune.test_importance import Net, images


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return torch.export.export(Net().eval(), (images(),), dynamic_shapes=({0: Dim("batch", min=1)},))


@pytest.fixture(scope="module")
def structure(program: ExportedProgram) -> Structure:
    return analyse(program)


def units(structure: Structure, name: str) -> list[int]:
    return list(next(family for family in structure.families if family.name == name).units)


def weights(net: Net) -> list[Tensor]:
    """Those of the 4 units of conv2, with the units in dimension 0."""
    return [net.conv2.weight.flatten(1), net.head.weight.view(5, 4, 4).movedim(1, 0).flatten(1)]


def test_norms_are_over_all_layers_of_a_unit(structure: Structure) -> None:
    net = Net()
    expected = torch.cat(weights(net), dim=1).norm(dim=1)
    torch.testing.assert_close(GroupPenalty(net, structure).norms()[units(structure, "conv2")], expected)


def test_lasso_weighs_norms_by_the_root_of_the_group_size(structure: Structure) -> None:
    net = Net()
    for parameter in [net.conv1.weight, net.bn.weight, net.bn.bias]:
        parameter.data.zero_()
    net.conv2.weight.data.zero_()
    penalty = GroupPenalty(net, structure, SparsitySettings("lasso", 0.1))()
    size = 6 * 9 + 5 * 4
    expected = 0.1 * size**0.5 * weights(net)[1].norm(dim=1).sum()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-3)


def test_growing_pushes_the_weakest_unit_hardest(structure: Structure) -> None:
    net = Net()
    with torch.no_grad():
        net.conv2.weight[1] *= 0.1
        net.head.weight.view(5, 4, 4)[:, 1] *= 0.1
        net.conv2.weight[3] *= 3
    GroupPenalty(net, structure, SparsitySettings("growing", 0.5, alpha=4))().backward()
    assert net.conv2.weight.grad is not None
    push = (net.conv2.weight.grad / net.conv2.weight.detach()).flatten(1)
    # every weight is also part of a unit of conv1, whose push is the same for all units of conv2
    push = push - push[3].clone()
    assert push[1].mean().item() == pytest.approx(2 * 0.5 * (2**4 - 1), rel=1e-3)


@pytest.mark.parametrize(("penalty", "strength"), [("lasso", 0.001), ("growing", 0.02)])
def test_training_makes_some_units_small_and_spares_others(structure: Structure, penalty: str, strength: float) -> None:
    """Targets that only the first two units of conv2 can explain."""
    net = Net()
    x = images(16)
    with torch.no_grad():
        net.head.weight.view(5, 4, 4)[:, 2:] *= 0.3
        target = net(x).clone()

    def task(module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        return (module(*inputs) - target).square().mean()

    group = GroupPenalty(net, structure, SparsitySettings(penalty, strength, refresh=10))
    objective = SparseObjective(task, group)
    before = group.norms()[units(structure, "conv2")]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        objective(net, (x,), None, torch.arange(16)).backward()
        optimizer.step()
    left = group.norms()[units(structure, "conv2")] / before
    assert left[2:].max() < 0.5 * left[:2].max()


def test_a_resumed_penalty_goes_on_where_it_was(structure: Structure) -> None:
    net, settings = Net(), SparsitySettings("growing", refresh=10)
    penalty, fresh, resumed = (GroupPenalty(net, structure, settings) for _ in range(3))
    penalty()
    with torch.no_grad():
        net.conv2.weight[0] *= 10
    resumed.load_state_dict(penalty.state_dict())
    expected = penalty().item()
    assert resumed().item() == expected
    assert fresh().item() != expected
    assert resumed.state_dict().keys() == {"factors", "steps"} and not list(resumed.parameters())


def test_an_objective_inside_keeps_its_modules(structure: Structure) -> None:
    class WithProjector:
        def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
            return module(*inputs).sum() * 0

        def modules(self) -> list[nn.Module]:
            return [projector]

    projector, net = nn.Linear(2, 2), Net()
    penalty = GroupPenalty(net, structure)
    objective = SparseObjective(WithProjector(), penalty)
    assert list(objective.modules()) == [projector, penalty]
    assert objective(net, (images(),), None, torch.arange(4)).item() == pytest.approx(penalty().item(), rel=1e-5)


def test_wrong_settings_and_modules_say_what_is_wrong(structure: Structure) -> None:
    with pytest.raises(PruneError, match=r"'laso'.*'lasso'"):
        SparsitySettings("laso")
    with pytest.raises(PruneError, match="strength 0"):
        SparsitySettings(strength=0)
    with pytest.raises(PruneError, match="none of the structure's parameters"):
        GroupPenalty(nn.Linear(2, 2), structure)
