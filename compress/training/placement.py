"""Where weights and optimizer state are while a module trains: whole in every process, or cut into shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.fabric import Step, processes
from edgepress.compress.training.optimize import make_optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Whole:
    """Every process holds all of it: one process, or DDP.

    Args:
        step: what is trained.
        config: the settings.
        fabric: of the processes that train together.
        folder: of the training's checkpoints.

    Attributes:
        in_parts: a checkpoint needs all processes.
        wrapped: `step` as it is called in training.
        optimizer: over its parameters.

    Raises:
        TrainingError: no parameter takes gradients, or the optimizer or the strategy refuses them.
    """

    in_parts = False

    def __init__(self, step: Step, config: TrainConfig, fabric: Fabric, folder: Path) -> None:
        self.step, self.fabric, self.folder = step, fabric, folder
        self.setup(config)

    def setup(self, config: TrainConfig) -> None:
        """Make `wrapped` and `optimizer`."""
        self.wrapped, self.optimizer = self.fabric.setup(self.step, make_optimizer(self.step, config))

    def synchronize(self) -> None:
        """Make buffers equal in all processes before a step; DDP does that by itself."""

    def clip(self, norm: float) -> None:
        """Scale the gradients down to a norm of at most that, all of them together."""
        self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=norm, error_if_nonfinite=False)

    @contextmanager
    def assembled(self) -> Iterator[None]:
        """The module has its whole weights; all processes enter and leave together."""
        yield

    def whole(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of `Weights` as they would be without shards; all processes call it together."""
        return dict(values)

    def part(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of tensors that `whole` gave."""
        return dict(values)

    def optimizer_state(self) -> dict[str, Any]:
        """For a checkpoint; all processes call it together."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up what `optimizer_state` gave."""
        self.optimizer.load_state_dict(state)

    def release(self) -> None:
        """Leave the module with parameters of its own again; all processes call it together."""


def place(step: Step, config: TrainConfig, fabric: Fabric, folder: Path) -> Whole:
    """Set a step up as the strategy says; see `Whole` for arguments and errors."""
    if config.strategy == "deepspeed":
        from edgepress.compress.training.deepspeed import Engine

        return Engine(step, config, fabric, folder)
    if is_sharded(config):
        from edgepress.compress.training.shards import Shards

        return Shards(step, config, fabric, folder)
    return Whole(step, config, fabric, folder)


def is_sharded(config: TrainConfig) -> bool:
    """Are parameters cut? Over one process they are not."""
    return config.strategy == "fsdp" and processes() > 1
