"""Devices, processes and precision, by Lightning Fabric."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.launch import launched
from edgepress.compress.training.objective import Objective, modules_of
from edgepress.targets.errors import TrainingError
from edgepress.targets.hidden import hidden

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
#: How long processes wait for one another: the others wait while the first evaluates or writes a checkpoint.
_PATIENCE = timedelta(minutes=30)


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def make_fabric(config: TrainConfig, module: nn.Module) -> Fabric:
    """Set up the processes this training runs in; they were started from outside (torchrun), by `together`, or this is the only one.

    Raises:
        TrainingError: the machine does not have what the configuration asks for.
    """
    with hidden("torchmetrics"):  # whose version Fabric looks at for its detection of spikes: seconds to import
        from lightning_fabric import Fabric  # of no use to whoever only reads a configuration
    from lightning_fabric.plugins.environments import LightningEnvironment

    cuda = torch.cuda.is_available()
    if config.precision == "fp16" and not cuda:
        raise TrainingError("precision is 'fp16'", "training in fp16 with loss scaling needs a GPU and there is none", "Take bf16 or fp32.")
    world = processes()
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
        strategy=_strategy(config, module, world, cuda),
        devices=devices,
        num_nodes=nodes,
        precision=_PRECISIONS[config.precision],
        plugins=[LightningEnvironment()] if launched() else None,
    )


def _strategy(config: TrainConfig, module: nn.Module, world: int, cuda: bool) -> Any:
    """Fabric's strategy; over one process DDP and FSDP have nothing to do."""
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if config.strategy == "deepspeed":
        from edgepress.compress.training.deepspeed import make_strategy

        return make_strategy(config, world, cuda)
    if world == 1:
        return "auto"
    if config.strategy == "fsdp":
        from edgepress.compress.training.shards import shard

        return ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1, timeout=_PATIENCE)
    return DDPStrategy(find_unused_parameters=may_leave_unused(module), timeout=_PATIENCE)


def may_leave_unused(module: nn.Module) -> bool:
    """Could a step leave parameters without gradients, which DDP has to look for then?

    Not where an exported graph has one output and that output needs every parameter. What a plain module's code does is unknown, and of
    several outputs the objective may read some alone.
    """
    if not isinstance(module, GraphModule):
        return True
    outputs = module.graph.output_node().all_input_nodes
    seen, waiting = set(outputs), list(outputs)
    while waiting:
        fresh = [source for source in waiting.pop().all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting += fresh
    parameters = dict(module.named_parameters(remove_duplicate=False))
    read = {id(parameters[node.target]) for node in seen if node.op == "get_attr" and node.target in parameters}
    inner = {id(p) for node in seen if node.op == "call_module" for p in module.get_submodule(str(node.target)).parameters()}
    return len(outputs) != 1 or any(id(p) not in read | inner for p in parameters.values() if p.requires_grad)


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
