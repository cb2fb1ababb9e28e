"""Devices, processes and precision, by Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.objective import Objective, modules_of
from edgepress.targets.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(config: TrainConfig) -> Fabric:
    """Set up the processes this training runs in; they were started from outside (torchrun), or this is the only one.

    Raises:
        TrainingError: the machine does not have what the configuration asks for.
    """
    from lightning_fabric import Fabric  # seconds to import, and of no use to whoever only reads a configuration

    cuda = torch.cuda.is_available()
    if config.precision == "fp16" and not cuda:
        raise TrainingError("precision is 'fp16'", "training in fp16 with loss scaling needs a GPU and there is none", "Take bf16 or fp32.")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    devices: int | str = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    nodes = world // int(devices)
    if (config.devices not in ("auto", devices)) or config.nodes not in (1, nodes):
        raise TrainingError(
            f"devices is {config.devices} and nodes is {config.nodes}",
            f"{world} process{'es were' if world > 1 else ' was'} started",
            f"Start them together: torchrun --nnodes {config.nodes} --nproc-per-node {config.devices} ...",
        )
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        strategy="ddp" if world > 1 else config.strategy,
        devices=devices,
        num_nodes=nodes,
        precision=_PRECISIONS[config.precision],
    )


class Sealed:
    """A batch that Fabric hands on as it is: of what it can look into, it would round float labels to half precision along with the inputs.

    Args:
        inputs: (n, ...), on the device.
        labels: (n, ...) or None, on the device.
        index: int64 (n,), rows of the dataset, on the CPU.
    """

    def __init__(self, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> None:
        self.inputs, self.labels, self.index = inputs, labels, index


class Step(nn.Module):  # type: ignore[misc]
    """Module and objective as one module that returns the loss, so that autocast and gradient synchronisation cover all the objective
    computes.

    Args:
        module: what is trained.
        objective: its own modules become parts of this one.
    """

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self.extra = nn.ModuleList(modules_of(objective))
        self.__dict__["objective"] = objective  # past nn.Module, which would register an objective that is a module, teacher and all

    def forward(self, batch: Sealed) -> Tensor:
        """The objective's loss, a scalar."""
        loss: Tensor = self.__dict__["objective"](self.module, batch.inputs, batch.labels, batch.index)
        return loss
