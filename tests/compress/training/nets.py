"""Small nets and data, and what several tests do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils.data import Dataset, TensorDataset


class Conv(nn.Module):
    """Conv, batch norm with numbers of its own, dropout, linear."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-2, momentum=0.3)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


def conv() -> Conv:
    torch.manual_seed(0)
    return Conv()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def program(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    batch = Dim("batch", min=1, max=4096)
    return export(module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def vectors(count: int = 96) -> TensorDataset:
    """Three classes that a linear model tells apart."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=random)
    return TensorDataset(x, x[:, :3].argmax(1))


def images(count: int = 64) -> TensorDataset:
    """The class is the channel that is brightest."""
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (count,), generator=random)
    x = torch.randn(count, 3, 8, 8, generator=random)
    x[torch.arange(count), labels] += 1.0
    return TensorDataset(x, labels)


class Listed(Dataset[Any]):
    """A dataset of Python items, which counts how often each is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.reads = items, [0] * len(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return self.items[index]


def accuracy(data: TensorDataset) -> Any:
    """A metric over all of `data`."""
    inputs, labels = data.tensors
    return lambda module: float((module(inputs).argmax(1) == labels).float().mean())


class Cut(Exception):
    """Stands for the end of the process."""


def loss_until(step: int | None, calls: list[None] | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy that gives up where it is asked for the `step`-th time, from 1; every other call is noted in `calls`."""
    taken = 0

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        if taken == step:
            raise Cut
        if calls is not None:
            calls.append(None)
        return nn.functional.cross_entropy(outputs, labels)

    return loss


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
