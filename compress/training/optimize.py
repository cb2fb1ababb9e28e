"""The optimizer, its learning rate over time, and averaged weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.training.config import TrainConfig, optimizer_class
from edgepress.targets.errors import TrainingError

#: He et al. 2016, section 4.2: divide by 10 at half and at three quarters of the steps.
_STEP_AT, _STEP_BY = (0.5, 0.75), 0.1
#: Smith 2018 and fast.ai: from a twenty-fifth of the highest rate, reached after three tenths, down to nearly nothing.
_ONE_CYCLE_START, _ONE_CYCLE_PEAK = 1 / 25, 0.3


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer over every parameter that takes gradients.

    Raises:
        TrainingError: no parameter does, or the optimizer refuses these parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            "no parameter takes gradients", "all are frozen", "Make an exported program trainable, or call `module.requires_grad_()`."
        )
    kind = optimizer_class(config.optimizer)
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": config.rate}
    if "momentum" in accepted:
        options["momentum"] = config.momentum
    if "nesterov" in accepted and config.momentum > 0:
        options["nesterov"] = True
    if "weight_decay" in accepted:
        options["weight_decay"] = config.decay
    spared = [parameter for parameter in parameters if config.no_decay_norms and parameter.ndim <= 1]
    decayed = [parameter for parameter in parameters if not (config.no_decay_norms and parameter.ndim <= 1)]
    groups: list[dict[str, Any]] = [{"params": decayed}] if decayed else []
    if spared:
        groups.append({"params": spared, **({"weight_decay": 0.0} if "weight_decay" in accepted else {})})
    try:
        return kind(groups, **options)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"optimizer {config.optimizer!r} cannot be used", str(error), "Take sgd or adamw.") from error


def rate_share(config: TrainConfig, share: float) -> float:
    """The learning rate as a share of the highest, 0 to 1.

    Args:
        share: how much of the training lies behind, 0 to 1.
    """
    if config.schedule == "one-cycle":
        peak = max(_ONE_CYCLE_PEAK, config.warmup)
        if share < peak:
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - _half_cosine(share / peak))
        return _half_cosine((share - peak) / (1 - peak))
    warm = min(1.0, share / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return warm
    if config.schedule == "step":
        return float(warm * _STEP_BY ** sum(share >= at for at in _STEP_AT))
    return warm if share < config.warmup else _half_cosine((share - config.warmup) / (1 - config.warmup))


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Weights:
    """All trained state of a module by name: parameters and buffers, each shared tensor once; of sharded parameters this process's rows."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def live(self) -> dict[str, Tensor]:
        """The module's own tensors; looked up anew, since moving a module replaces its buffers.

        Expanded buffers, whose elements share memory, are constants: nothing can write to them, no training either.
        """
        found = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        return {name: _own_rows(tensor.detach()) for name, tensor in found.items() if not is_expanded(tensor)}

    def copy(self) -> dict[str, Tensor]:
        """Clones, on the module's device."""
        return {name: tensor.clone() for name, tensor in self.live().items()}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Write values into the module."""
        for name, tensor in self.live().items():
            tensor.copy_(values[name])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def average_into(self, average: dict[str, Tensor], decay: float) -> None:
        """`average = decay * average + (1 - decay) * weights` for floating-point tensors; others are copied."""
        live = self.live()
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average[name] for name in floats], [live[name] for name in floats], 1 - decay)
        for name in live.keys() - floats:
            average[name].copy_(live[name])


def is_expanded(tensor: Tensor) -> bool:
    """Do elements share memory?"""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _own_rows(tensor: Any) -> Tensor:
    rows: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return rows


def decay_at(decay: float, step: int) -> float:
    """The decay of the average after `step` steps: smaller in the beginning, so that the first weights are forgotten.

    As in TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))
