"""Residual blocks: which can go, what they are worth, and what is left when they are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune import analyse, check, remove
from edgepress.compress.prune.depth import block_importance, remove_blocks, residual_blocks, shorten
from edgepress.compress.train import trainable
from edgepress.targets.errors import PruneError


class Branch(nn.Module):
    def __init__(self, width: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.bn1(self.conv1(x))))


class Net(nn.Module):
    """Three blocks in a row, then one with a projection, which no shortcut can stand for."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.Sequential(*[Branch(6, inplace) for _ in range(3)])
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(F.relu(self.left(x) + self.right(x)).mean((2, 3)))


class Attention(nn.Module):
    """Post-norm transformer layers with a mask that every layer reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.out = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (1 - mask)[:, None, :] * -1e4
        for q, out, norm in zip(self.q, self.out, self.norms, strict=True):
            shared = q(x)
            x = norm(out(torch.softmax(shared @ shared.transpose(1, 2) + bias, -1) @ shared) + x)
        return x.mean(1)


class Leaky(nn.Module):
    """The inside of the first branch is an output too; the second writes over a part of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.a(x)
        y = (x + torch.tanh(inner)) * 2
        return y + self.b(torch.cat([F.relu_(y[:, :2]), torch.sin(y[:, 2:])], 1)), inner


def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    return torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: Dim("batch", min=1)} for _ in inputs))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def loss(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


BATCHES = [((images(),), torch.arange(4))]


def test_blocks_are_sums_with_their_own_input_alone() -> None:
    blocks = residual_blocks(exported(Net(), images()))
    assert [block.name for block in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    names = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias")
    assert {f"blocks.1.{name}" for name in names} <= set(blocks[1].tensors)
    assert not any(name.startswith(("stem", "blocks.0")) for name in blocks[1].tensors)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("gone", [[1], [0, 1], [2, 0], [0, 1, 2]])
def test_a_removed_block_is_the_identity(gone: list[int], inplace: bool) -> None:
    net = Net(inplace)
    program = exported(net, images())
    blocks = residual_blocks(program)
    shorter = remove_blocks(program, [blocks[i] for i in gone])
    for i in gone:
        net.blocks[i] = nn.Identity()
    for batch in (1, 2, 5):
        torch.testing.assert_close(shorter.module()(images(batch)), net(images(batch)))
    assert set(shorter.state_dict) == set(net.state_dict())
    assert len(residual_blocks(program)) == 3
    assert not {id(value) for value in shorter.state_dict.values()} & {id(value) for value in program.state_dict.values()}


def test_transformer_layers_that_share_a_mask_can_go() -> None:
    x, mask = torch.randn(2, 3, 8), torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    net = Attention()
    program = exported(net, x, mask)
    blocks = residual_blocks(program)
    assert len(blocks) == 2 and set(blocks[0].tensors) == {"q.0.weight", "q.0.bias", "out.0.weight", "out.0.bias"}
    shorter = remove_blocks(program, blocks[:1])
    net.eval()
    expected = Attention().eval()
    expected.load_state_dict(net.state_dict())
    nn.init.zeros_(expected.out[0].weight)
    nn.init.zeros_(expected.out[0].bias)
    torch.testing.assert_close(shorter.module()(x, mask), expected(x, mask))


def test_a_branch_that_others_read_or_that_overwrites_its_input_stays() -> None:
    assert residual_blocks(exported(Leaky(), torch.randn(2, 4))) == ()


def test_importance_is_the_growth_of_the_loss() -> None:
    net = Net()
    with torch.no_grad():
        net.blocks[1].conv2.weight.zero_()
        net.blocks[1].conv2.bias.zero_()
        net.blocks[2].conv2.weight.mul_(5)
    program = exported(net, images())
    found = block_importance(program, residual_blocks(program), BATCHES, loss)
    with torch.no_grad():
        before = loss(net(images()), torch.arange(4)).item()
        net.blocks[2] = nn.Identity()
        after = loss(net(images()), torch.arange(4)).item()
    assert found[1] == pytest.approx(0, abs=1e-6)
    assert found[2] == pytest.approx(after - before, abs=1e-5)
    assert abs(found[2]) > 1e-3
    assert found.dtype == np.float64


def test_the_least_important_blocks_go_first() -> None:
    net = Net()
    with torch.no_grad():
        net.blocks[1].conv2.weight.zero_()
        net.blocks[1].conv2.bias.zero_()
    # without labels: how far outputs move
    expected = net.eval()(images()).detach()
    shorter, removed = shorten(exported(net, images()), 2, [((images(),), expected)], F.mse_loss)
    assert removed[0][0].name == "blocks.1" and removed[0][1] == pytest.approx(0, abs=1e-9)
    assert removed[1][1] > 0
    assert len(residual_blocks(shorter)) == 1


def test_more_blocks_than_there_are_is_an_error() -> None:
    program = exported(Net(), images())
    with pytest.raises(PruneError, match=r"4 residual blocks.*the model has 3"):
        shorten(program, 4, BATCHES, loss)
    with pytest.raises(PruneError, match="no samples"):
        block_importance(program, residual_blocks(program), [], loss)
    shorter = remove_blocks(program, residual_blocks(program)[-1:])
    with pytest.raises(PruneError, match="not in this program"):
        remove_blocks(shorter, residual_blocks(program)[-1:])


def test_a_shorter_program_can_be_saved_pruned_and_trained(tmp_path: Path) -> None:
    program = exported(Net(), images())
    torch.export.save(remove_blocks(program, residual_blocks(program)[:2]), tmp_path / "short.pt2")
    shorter = torch.export.load(tmp_path / "short.pt2")
    structure = analyse(shorter)
    removed = np.zeros(structure.unit_count, dtype=bool)
    removed[structure.families[0].units[0]] = True
    smaller = remove(shorter, structure, removed)
    check(shorter, smaller, structure, removed, [images()])
    module = trainable(smaller)
    module(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
