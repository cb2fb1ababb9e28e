"""What learns: module, optimizer and averaged weights, on the devices they are on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgepress.compress.training.augment import Augment
from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.data import Batch
from edgepress.compress.training.devices import answering_on, move, rename
from edgepress.compress.training.fabric import Sealed, Step
from edgepress.compress.training.layout import channels_last, class_count
from edgepress.compress.training.modes import set_training
from edgepress.compress.training.objective import Objective
from edgepress.compress.training.optimize import Weights, decay_at, set_rate
from edgepress.compress.training.placement import is_sharded, place
from edgepress.compress.training.random import seed_everything, seed_for
from edgepress.targets.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Learner:
    """Takes optimizer steps, and gives and takes the state they change.

    Args:
        module: what is trained.
        objective: its loss.
        config: the settings.
        fabric: of the processes that train together.
        example: a few samples.
        folder: of the training's checkpoints.

    Raises:
        TrainingError: no parameter takes gradients, or the optimizer or the strategy refuses them.
    """

    def __init__(self, module: nn.Module, objective: Objective, config: TrainConfig, fabric: Fabric, example: Batch, folder: Path) -> None:
        self._module, self._config, self._fabric = module, config, fabric
        self._step = Step(module, objective)
        self._weights = Weights(self._step)
        classes = class_count(module, example) if config.mixes else 0
        self._augment = Augment(config.augment, classes, fabric.world_size, fabric.global_rank)
        self._home = next(module.parameters()).device
        self._reordered = not is_sharded(config) and channels_last(module, example.inputs)  # FSDP cuts contiguous parameters alone
        self._place = place(self._step, config, fabric, folder)
        rename(self._step, fabric.device)
        self._optimizer, self.in_parts = self._place.optimizer, self._place.in_parts
        self._average = self._weights.copy() if config.ema is not None else None
        self.waited = 0.0

    def train_mode(self, training: bool) -> None:
        """Switch module and the objective's own modules."""
        set_training(self._step, training)

    def step(self, batches: Iterator[Batch], number: int, rate: float) -> Tensor:
        """Take the next batches and make an optimizer step of them; `waited` is then the seconds it waited for data.

        All random numbers follow from the seed and `number`, whatever was drawn before.

        Args:
            batches: as many as are accumulated are taken.
            number: of the step, from 0 over the whole training.
            rate: learning rate.

        Returns:
            The mean loss over all processes, float32, on the device. Where it is not finite, the weights are not to be used any more.
        """
        config, fabric = self._config, self._fabric
        set_rate(self._optimizer, rate)
        self.waited = 0.0
        self._place.synchronize()
        total = torch.zeros((), device=fabric.device)
        for part in range(config.accumulate):
            batch = self._next(batches, seed_for("augment", config.seed, number, part))
            seed_everything(seed_for("step", config.seed, fabric.global_rank, number, part))  # after a dataset may have drawn numbers here
            last = part + 1 == config.accumulate
            with nullcontext() if last else fabric.no_backward_sync(self._place.wrapped):
                loss = self._place.wrapped(batch)
                _check(loss)
                fabric.backward(loss / config.accumulate)
            total += loss.detach().float() / config.accumulate
        if config.clip is not None:
            self._place.clip(config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None and config.ema is not None:
            self._weights.average_into(self._average, decay_at(config.ema, number))
        return fabric.all_reduce(total, reduce_op="mean") if fabric.world_size > 1 else total

    def _next(self, batches: Iterator[Batch], seed: int) -> Sealed:
        asked = time.perf_counter()
        batch = next(batches)
        inputs, labels = self._fabric.to_device((batch.inputs, batch.labels))
        inputs, labels = self._augment(inputs, labels, seed)
        self.waited += time.perf_counter() - asked
        return Sealed(inputs, labels, batch.index)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The module in eval mode, without gradients, with the averaged weights where there are such; entered by all processes together.

        It takes and gives tensors on the device it came from.
        """
        mine = self._weights.copy() if self._average is not None else None
        if self._average is not None:
            self._weights.load(self._average)
        self.train_mode(False)
        try:
            with torch.no_grad(), self._place.assembled(), answering_on(self._module, self._home):
                yield self._module
        finally:
            if mine is not None:
                self._weights.load(mine)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights as they are evaluated, averaged where that was asked for; of this process's part."""
        return self._weights.copy() if self._average is None else {name: value.clone() for name, value in self._average.items()}

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put what `weights` gave into the module."""
        self._weights.load(values)

    def whole(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What `weights` gave, put together from all processes' parts, which all call this; by default the module's own tensors, which the
        next step changes."""
        return self._place.whole(self._weights.live() if values is None else values)

    def part(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of whole tensors."""
        return self._place.part(values)

    def state(self) -> dict[str, Any]:
        """Everything that steps change, for a checkpoint: the tensors themselves, to be written before the next step. All processes call it
        together."""
        return {
            "weights": self.whole(),
            "optimizer": self._place.optimizer_state(),
            "average": self.whole(self._average) if self._average is not None else None,
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._weights.load(self.part(state["weights"]))
        self._place.load_optimizer_state(state["optimizer"])
        average = self.part(state["average"]) if self._average is not None else {}
        for name, value in (self._average or {}).items():
            value.copy_(average[name])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of fp16, None in other precisions."""
        return getattr(self._fabric.strategy.precision, "scaler", None)

    def give_back(self, failed: bool = False) -> None:
        """Leave the module in eval mode, on the device and in the memory layout it came in.

        Args:
            failed: the other processes may be anywhere: a module in shards stays that way.
        """
        self.train_mode(False)
        if failed and self.in_parts:
            return
        self._place.release()
        if self._reordered:
            self._module.to(memory_format=torch.contiguous_format)
        move(self._step, self._home)


def _check(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TrainingError(f"the objective returned {found}", "a loss is one number", "Return its mean.")
    if not loss.requires_grad:
        raise TrainingError(
            "the loss depends on no parameter that is trained", "it has no gradient", "Compute it from the module's outputs."
        )
