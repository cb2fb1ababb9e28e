"""What a training is asked to do, and what it says when it is over."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgepress.compress.training.augment import parse_augment
from edgepress.targets.errors import TrainingError

SCHEDULES = ("cosine", "one-cycle", "step", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
STRATEGIES = ("auto", "ddp", "fsdp", "deepspeed")
LOGGERS = ("tensorboard", "mlflow")

#: Where an optimizer is known well enough to choose for the user. SGD: He et al. 2016 with the rate for a trained net; AdamW: its paper's
#: and torch's.
_RATES = {"sgd": 0.05, "adamw": 1e-3}
_DECAYS = {"sgd": 5e-4, "adamw": 1e-2}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training, checked when made.

    Attributes:
        epochs: passes over the data, also in parts (0.5); the last, partial one is evaluated like the others.
        batch: samples of one forward pass, over all processes. A last batch that is not full is left out; the next epoch's order brings its
            samples.
        optimizer: any class of `torch.optim` by name, whatever the case.
        lr: highest learning rate; None takes the optimizer's own (0.05 for SGD, 1e-3 for AdamW, else torch's default).
        weight_decay: None takes the optimizer's own (5e-4 for SGD, 1e-2 for AdamW, else torch's default).
        momentum: for optimizers that have one; SGD uses Nesterov's.
        schedule: `cosine` to zero, `one-cycle` (Smith 2018), `step` (a tenth at half and at three quarters: He et al. 2016), `constant`.
        warmup: share of all steps in which the rate grows linearly.
        precision: `fp32`; `bf16` and `fp16` by autocast, fp16 with loss scaling (GPU).
        accumulate: batches whose gradients make one optimizer step.
        clip: largest norm of all gradients together.
        ema: decay of an exponential moving average of the weights, which is evaluated and returned in their place.
        label_smoothing: for whoever makes the task loss to hand to `task_loss` (Szegedy et al. 2016, section 7).
        patience: evaluations without a better metric after which training stops.
        restore_best: end with the best evaluated weights, the start's among them, rather than the last.
        activation_checkpointing: compute activations again in the backward pass instead of keeping them (Chen et al. 2016).
        strategy: how processes share the work. `auto`, `ddp`: each holds everything and has its part of a batch. `fsdp`: weights, averages,
            gradients and optimizer state in shards (`Shards`). `deepspeed`: by that package, on CUDA GPUs (`Engine`).
        devices: processes per node, one GPU each where there are such. `auto` takes those that were started (torchrun), else one.
        nodes: machines.
        augment: on batches of images (N, C, H, W): `flip`, `crop<pixels>`, `cutout<pixels>`, `mixup<alpha>`, each at most once. Mixup
            blends samples of one process: with it, and with it alone, the number of processes changes which samples meet.
        seed: of everything random.
        checkpoint_every_s: seconds between two checkpoints; one is written after every epoch too.
        time_limit_s: training ends after that many seconds, those before a resumption included. The schedule then runs over whichever is
            over sooner, steps or time.
        no_decay_norms: biases and norms' scales are spared weight decay.
        log: `tensorboard`, `mlflow`.
    """

    epochs: float = 1
    batch: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    precision: str = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    label_smoothing: float = 0.0
    patience: int | None = None
    restore_best: bool = True
    activation_checkpointing: bool = False
    strategy: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    augment: tuple[str, ...] = ()
    seed: int = 0
    checkpoint_every_s: float = 30.0
    time_limit_s: float | None = None
    no_decay_norms: bool = True
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("strategy", STRATEGIES)):
            one_of(name, getattr(self, name), allowed)
        for logger in self.log:
            one_of("log", logger, LOGGERS)
        optimizer_class(self.optimizer)
        parse_augment(self.augment)
        for name in ("epochs", "batch", "accumulate", "nodes", "lr", "clip", "patience", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise TrainingError(f"{name} is {value}", "it must be above zero", _SMALLEST.get(name, "Give a positive number."))
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise TrainingError(f"{name} is {value}", "it is a share", "Give a number from 0 up to, but not including, 1.")
        for name in ("weight_decay", "checkpoint_every_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise TrainingError(f"{name} is {value}", "it cannot be negative", "Give 0 or more.")
        if self.devices != "auto" and not (isinstance(self.devices, int) and self.devices > 0):
            raise TrainingError(f"devices is {self.devices!r}", "", "Give a number above zero, or 'auto'.")
        self._check_strategy()

    def _check_strategy(self) -> None:
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise TrainingError("precision is 'fp16'", "strategy 'fsdp' has no loss scaling", "Take bf16, or ddp.")
        if self.strategy == "deepspeed" and self.precision != "fp32":
            raise TrainingError(
                f"precision is {self.precision!r}", "strategy 'deepspeed' would round the model's own weights", "Take fp32, or fsdp or ddp."
            )
        if self.strategy == "deepspeed" and self.accumulate > 1:
            raise TrainingError(
                f"accumulate is {self.accumulate}", "DeepSpeed counts batches itself, one to a step", "Take 1, or fsdp or ddp."
            )

    @property
    def mixes(self) -> bool:
        """Are samples blended with others, and labels with them?"""
        return "mixup" in parse_augment(self.augment)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.lr if self.lr is not None else _RATES.get(self.optimizer.lower(), _own_default(self.optimizer, "lr", 1e-3))

    @property
    def decay(self) -> float:
        """The weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return _DECAYS.get(self.optimizer.lower(), _own_default(self.optimizer, "weight_decay", 0.0))


_SMALLEST = {"epochs": "Give the passes over the data, e.g. 1 or 0.5; leave the training out to train nothing."}


@dataclass(frozen=True)
class TrainResult:
    """What a training came to; the weights are in the module itself.

    Attributes:
        best: highest metric of an evaluation, the one before the first step included; None without an evaluation that gave a number.
        last: metric of the last evaluation of trained weights, None where it was not a number.
        best_epoch: after which epoch `best` was seen, 0 for the weights at the start; None without an evaluation.
        start: metric of the weights before the first step.
        epochs_done: passes over the data, in parts where the last one was cut.
        steps: optimizer steps.
        history: per epoch `epoch`, `loss` (mean over its batches), `metric`, `lr` (at its end) and `seconds` (evaluation included).
        waiting_share: share of the time of all steps spent waiting for data, 0 to 1.
        stopped: `finished`, `early stopping`, `time limit`, or `diverged`: the loss was not finite, and the module has the best weights
            seen before (by metric, else by training loss), which are the start's where none were better.
        remarks: what the user should know of how it went.
    """

    best: float | None
    last: float | None
    best_epoch: float | None
    start: float | None
    epochs_done: float
    steps: int
    history: tuple[Mapping[str, Any], ...]
    waiting_share: float
    stopped: str
    remarks: tuple[str, ...] = ()


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Require a known name.

    Raises:
        TrainingError: it is not among `allowed`; the message names the nearest.
    """
    names = list(allowed)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, 1)
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        raise TrainingError(f"{name} is {value!r}", f"known are {', '.join(names)}", remedy)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of `torch.optim` of that name, whatever the case.

    Raises:
        TrainingError: there is none, or it needs the loss computed several times a step (LBFGS).
    """
    found = {key.lower(): value for key, value in vars(torch.optim).items() if _is_optimizer(value)}
    one_of("optimizer", name.lower(), found)
    kind: type[torch.optim.Optimizer] = found[name.lower()]
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise TrainingError(f"optimizer is {name!r}", "it computes the loss several times a step", "Take sgd or adamw.")
    return kind


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def _own_default(optimizer: str, parameter: str, otherwise: float) -> float:
    found = inspect.signature(optimizer_class(optimizer)).parameters.get(parameter)
    default = found.default if found is not None else otherwise
    return float(default) if isinstance(default, int | float) else otherwise
