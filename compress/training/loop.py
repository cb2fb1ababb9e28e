"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgepress.compress.training import checkpoint
from edgepress.compress.training.config import TrainConfig, TrainResult
from edgepress.compress.training.data import Batch, Feed
from edgepress.compress.training.fabric import make_fabric
from edgepress.compress.training.launch import meet
from edgepress.compress.training.layout import image_like
from edgepress.compress.training.learner import Learner
from edgepress.compress.training.loggers import Loggers
from edgepress.compress.training.memory import checkpointed
from edgepress.compress.training.objective import Objective
from edgepress.compress.training.optimize import rate_share
from edgepress.compress.training.random import generators_kept, repeatable_kernels, seed_everything, seed_for
from edgepress.compress.training.state import State
from edgepress.targets.errors import TrainingError
from edgepress.targets.progress import progress

#: On a GPU a look at the loss waits for everything queued before it: so one in this many steps.
_LOOK_EVERY = 20
#: Settings that change how a training is watched or cut, not where it goes.
_INCIDENTAL = frozenset(["checkpoint_every_s", "time_limit_s", "log", "devices", "nodes", "strategy"])

Evaluate = Callable[[nn.Module], float]
T = TypeVar("T")


def train(
    module: nn.Module,
    data: Dataset[Any],
    objective: Objective,
    config: TrainConfig,
    folder: Path,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train a module in place; a call that was cut, even by kill -9, goes on from the checkpoint in `folder`.

    On the CPU with the same number of threads, a training that was cut ends with the very weights of one that was not, unless it has a time
    limit. A folder with a finished training gives its weights and result again.

    Args:
        module: any module whose parameters take gradients, exported ones (`trainable`) included. It is in eval mode afterwards.
        data: map-style, items `(input, label)` or `((input, ...), label)`; see `Feed` for what is kept in memory.
        objective: the loss; its own modules are trained along.
        config: the settings.
        folder: for `checkpoint.pt` and `best.pt`; made where it is missing.
        evaluate: gives the metric, higher is better, of the module in eval mode and without gradients, before training and after every
            epoch. It must not use the data by which the compressed model is judged in the end.

    Raises:
        TrainingError: nothing to train (data, parameters), settings that do not go together or that this machine cannot do, a folder with
            the checkpoint of another training, a checkpoint that cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with generators_kept(), repeatable_kernels():
        seed_everything(seed_for("setup", config.seed))
        return _Run(module, data, objective, config, folder, evaluate).go()


class _Run:
    """One call of `train`."""

    def __init__(
        self, module: nn.Module, data: Dataset[Any], objective: Objective, config: TrainConfig, folder: Path, evaluate: Evaluate | None
    ) -> None:
        self.config, self.folder, self.evaluate, self.module = config, folder, evaluate, module
        self.fabric = make_fabric(config, module)
        meet()
        self.fabric.launch()
        self.first = self.fabric.global_rank == 0
        self.feed = Feed(data, config.batch, config.seed, self.fabric.world_size, self.fabric.global_rank)
        self.steps_per_epoch = self.feed.per_epoch // config.accumulate
        self.total = max(1, round(config.epochs * self.steps_per_epoch))
        example = self.feed.example()
        self._check(example)
        self.learner = Learner(module, objective, config, self.fabric, example, folder)
        self.fingerprint = self._fingerprint()
        self.loggers = Loggers(config.log if self.first else (), folder, asdict(config))
        self.state = State()
        self.best: dict[str, Tensor] = {}
        self.mark = self.saved = time.perf_counter()

    def _check(self, example: Batch) -> None:
        config = self.config
        if self.steps_per_epoch == 0:
            batches = f"an epoch has {self.feed.per_epoch} batches of {self.feed.batch}"
            raise TrainingError(f"accumulate is {config.accumulate}", batches, "Accumulate fewer, or take smaller batches.")
        if config.augment and not image_like(example.inputs):
            raise TrainingError(f"augment is {', '.join(config.augment)}", "the first input is not float images (C, H, W)", "Leave it out.")

    def _fingerprint(self) -> str:
        """What a checkpoint must have been made for: settings, size of the data, weights at the start."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in _INCIDENTAL}
        return f"{seed_for(repr(settings), self.feed.size, self.feed.batch)} {checkpoint.digest(self.learner.whole())}"

    def go(self) -> TrainResult:
        """Resume or begin, train, and leave the final weights in the module."""
        try:
            with self.loggers, checkpointed(self.module, self.config.activation_checkpointing):
                if not self._resume():
                    self._begin()
                if not self.state.stopped:
                    while not self.state.stopped:
                        self._epoch()
                    self._end()
        except BaseException:
            self.learner.give_back(failed=True)
            raise
        self.learner.give_back()
        return self.state.result()

    def _begin(self) -> None:
        if self.feed.batch < self.config.batch:
            self.state.remarks.append(f"batch is {self.feed.batch}, not {self.config.batch}: there are {self.feed.size} samples")
        if self.config.strategy == "fsdp" and self.fabric.world_size == 1:
            self.state.remarks.append("strategy fsdp cut nothing: there is one process")
        if self.fabric.device.type == "cuda":
            self.state.remarks.append(f"trained on {torch.cuda.get_device_name(self.fabric.device)}")
        self.state.begin(self._metric())
        self._keep_best()

    def _resume(self) -> bool:
        """Take up the checkpoint; False where there is none."""
        path = self.folder / checkpoint.STATE
        found = checkpoint.load(path)
        if self._of_first(found is None) != (found is None):
            raise TrainingError(f"{self.folder} is not the same folder for all processes", "", "Take one that all machines share.")
        if found is None:
            return False
        if found["fingerprint"] != self.fingerprint:
            why = "its settings, data or weights at the start differ"
            raise TrainingError(f"{path} belongs to another training", why, "Delete it, or choose another folder.")
        self.state = State(**found["state"])
        if self.state.stopped:
            self.learner.load_weights(self.learner.part(found["weights"]))
            return True
        self.learner.load_state(found)
        best = checkpoint.load(self.folder / checkpoint.BEST)
        if best is None:
            raise TrainingError(
                f"{self.folder / checkpoint.BEST} is missing", "it lay beside the checkpoint", f"Delete {path} to start anew."
            )
        self.best = self.learner.part(best["weights"])
        return True

    def _save(self) -> None:
        """Write a checkpoint; only the first process does, with what all have together."""
        self._tick()
        self.saved = time.perf_counter()
        learned = {"weights": self.learner.whole()} if self.state.stopped else self.learner.state()
        if self.first:
            value = {"fingerprint": self.fingerprint, "state": asdict(self.state), **learned}
            checkpoint.save(self.folder / checkpoint.STATE, value)

    def _keep_best(self) -> None:
        self.best = self.learner.weights()
        weights = self.learner.whole(self.best)
        if self.first:
            checkpoint.save(self.folder / checkpoint.BEST, {"weights": weights})

    def _epoch(self) -> None:
        state = self.state
        steps = min(self.steps_per_epoch, self.total - state.epoch * self.steps_per_epoch)
        batches = self.feed.batches(state.epoch, state.step * self.config.accumulate)
        self.learner.train_mode(True)
        sum_of_losses = torch.tensor(state.loss, dtype=torch.float64, device=self.fabric.device)
        while state.step < steps and not state.stopped:
            started = time.perf_counter()
            loss = self.learner.step(batches, state.steps, self._rate())
            sum_of_losses += loss
            state.step, state.steps = state.step + 1, state.steps + 1
            looks = self.fabric.device.type == "cpu" or state.steps % _LOOK_EVERY == 0 or state.step == steps
            if looks and not math.isfinite(float(sum_of_losses)):
                return self._diverged()
            state.stepping, state.waiting = state.stepping + time.perf_counter() - started, state.waiting + self.learner.waited
            self._tick()
            if looks:
                progress(
                    state.text(math.ceil(self.total / self.steps_per_epoch), float(loss), self._share(state.steps)), state.steps, self.total
                )
            if self._time_is_up():
                state.stopped = "time limit"
            elif state.step < steps and self._checkpoint_is_due():
                state.loss = float(sum_of_losses)
                self._save()
        return self._close_epoch(float(sum_of_losses) / state.step)

    def _close_epoch(self, loss: float) -> None:
        state = self.state
        done = state.steps / self.steps_per_epoch
        state.epochs_done = int(done) if done == int(done) else done
        metric, rate = self._metric(), self._rate()
        self._tick()
        if state.close_epoch(loss, metric, rate):
            self._keep_best()
        self.loggers.write(state.steps, {"loss": loss, "metric": metric, "lr": rate})
        if state.steps >= self.total:
            state.stopped = "finished"
        elif not state.stopped and metric is not None and self.config.patience is not None and state.stale >= self.config.patience:
            state.stopped = "early stopping"
        if not state.stopped:
            self._save()

    def _diverged(self) -> None:
        state = self.state
        state.stopped = "diverged"
        kept = "the weights at the start" if state.stale == len(state.history) else "the best weights before it"
        remedy = f"lr {self.config.rate / 10:g}" + ("" if self.config.clip else " or clip 1.0")
        state.remarks.append(f"the loss was not finite at step {state.steps}: {kept} were kept; try {remedy}")

    def _end(self) -> None:
        """Put the final weights into the module and record them."""
        best = self.state.stopped == "diverged" or (self.evaluate is not None and self.config.restore_best)
        self.learner.load_weights(self.best if best else self.learner.weights())
        self._save()

    def _metric(self) -> float | None:
        """What `evaluate` says, asked by the first process alone; None without it."""
        if self.evaluate is None:
            return None
        value = 0.0
        with self.learner.evaluated() as module:
            if self.first:
                progress(f"training: evaluating after {self.state.steps} steps", self.state.steps, self.total)
                value = float(self.evaluate(module))
        return self._of_first(value)

    def _rate(self) -> float:
        """The learning rate of the step under way, at its middle."""
        share = self._share(self.state.steps + 0.5)
        return self.config.rate * rate_share(self.config, self._of_first(share) if self.config.time_limit_s else share)

    def _share(self, steps: float) -> float:
        """How much of the training `steps` steps are: of the steps, or of the time where that runs out sooner."""
        limit = self.config.time_limit_s
        return min(1.0, max(steps / self.total, self.state.seconds / limit if limit else 0.0))

    def _time_is_up(self) -> bool:
        limit = self.config.time_limit_s
        return limit is not None and self._of_first(self.state.seconds >= limit)

    def _checkpoint_is_due(self) -> bool:
        due = time.perf_counter() - self.saved > self.config.checkpoint_every_s
        return self._of_first(due) if self.learner.in_parts else due

    def _of_first(self, value: T) -> T:
        """The first process's value in all of them, since each has a clock of its own."""
        return value if self.fabric.world_size == 1 else self.fabric.broadcast(value)

    def _tick(self) -> None:
        """Count the time since the last call."""
        now = time.perf_counter()
        self.state.seconds += now - self.mark
        self.state.epoch_seconds += now - self.mark
        self.mark = now
