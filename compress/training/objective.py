"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.training.config import one_of
from edgepress.targets.errors import TrainingError

Loss = Callable[[Any, Tensor], Tensor]


@runtime_checkable
class Objective(Protocol):
    """A scalar loss of the module on one batch.

    An objective with parameters of its own (projectors of feature distillation) also has `modules() -> Sequence[nn.Module]`: those modules
    are trained, averaged, saved and resumed along with the module.
    """

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        """The loss to be minimised.

        Args:
            module: in train mode; call it with `*inputs`.
            inputs: tensors of shape (N, ...), augmented where that was asked for.
            labels: (N, ...): class numbers int64, or float32; class probabilities (N, C) under mixup; None where the data has none.
            index: int64 (N,), on the CPU: rows of the dataset.

        Returns:
            A scalar, the mean over the batch.
        """
        ...


def modules_of(objective: Objective) -> Sequence[nn.Module]:
    """The modules that are trained along, none where the objective does not name any."""
    found = getattr(objective, "modules", None)
    return tuple(found()) if callable(found) else ()


class TaskLoss:
    """The loss of the task itself: of the module's outputs against the labels.

    Args:
        loss: called as `(outputs, labels)`; returns the mean over the batch.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        """The loss of one batch.

        Raises:
            TrainingError: the data has no labels.
        """
        if labels is None:
            raise TrainingError(
                "the training data has no labels", "the task loss compares outputs with labels", "Distil from a teacher alone."
            )
        return self.loss(module(*inputs), labels)


def task_loss(loss: str | Loss | None = None, label_smoothing: float = 0.0) -> TaskLoss:
    """The objective of a task.

    Args:
        loss: `cross_entropy` (outputs (N, C, ...); labels int64 (N, ...), or probabilities (N, C, ...)), `bce` (logits, labels in 0..1 of
            the same shape), `mse`, `l1`, a callable `(outputs, labels) -> scalar`, or None or `auto`: cross entropy for integer labels and
            for probabilities made by mixup, else mean squared error.
        label_smoothing: for cross entropy and bce (Szegedy et al. 2016, section 7).

    Raises:
        TrainingError: no loss has that name.
    """
    if callable(loss):
        return TaskLoss(loss)
    name = loss or "auto"
    known: dict[str, Loss] = {
        "auto": lambda outputs, labels: _automatic(outputs, labels, label_smoothing),
        "cross_entropy": lambda outputs, labels: F.cross_entropy(logits_of(outputs), labels, label_smoothing=label_smoothing),
        "bce": lambda outputs, labels: _binary(logits_of(outputs), labels, label_smoothing),
        "mse": lambda outputs, labels: F.mse_loss(*_same_shape(logits_of(outputs), labels)),
        "l1": lambda outputs, labels: F.l1_loss(*_same_shape(logits_of(outputs), labels)),
    }
    one_of("loss", name, known)
    return TaskLoss(known[name])


def logits_of(outputs: Any) -> Tensor:
    """The tensor a task loss judges: the output itself, or the first of several.

    Raises:
        TrainingError: there is none.
    """
    first = next(iter(outputs.values()), None) if isinstance(outputs, dict) else outputs
    first = first[0] if isinstance(first, tuple | list) and first else first
    if not isinstance(first, Tensor):
        raise TrainingError(
            f"the model returned {type(outputs).__name__}", "a loss needs a tensor", "Give a callable (outputs, labels) as the loss."
        )
    return first


def _automatic(outputs: Any, labels: Tensor, smoothing: float) -> Tensor:
    logits = logits_of(outputs)
    if not labels.is_floating_point() or _are_probabilities(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return F.mse_loss(*_same_shape(logits, labels))


def _are_probabilities(logits: Tensor, labels: Tensor) -> bool:
    """Several classes, all shares positive, each row summing to one."""
    if labels.shape != logits.shape or labels.ndim < 2 or labels.shape[1] < 2:
        return False
    return bool((labels >= 0).all()) and bool(torch.allclose(labels.sum(1), labels.new_ones(()), atol=1e-4))


def _binary(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    outputs, wanted = _same_shape(logits, labels)
    return F.binary_cross_entropy_with_logits(outputs, wanted * (1 - smoothing) + smoothing / 2)


def _same_shape(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as floats of the outputs' shape; a trailing dimension of one may be missing on either side.

    Raises:
        TrainingError: the shapes differ otherwise, where broadcasting would compute something else without a word.
    """
    if outputs.shape != labels.shape and outputs.squeeze(-1).shape == labels.squeeze(-1).shape:
        labels = labels.reshape(outputs.shape)
    if outputs.shape != labels.shape:
        raise TrainingError(
            f"outputs are {tuple(outputs.shape)} and labels {tuple(labels.shape)}", "this loss compares like with like", "Check the labels."
        )
    return outputs, labels.to(outputs.dtype)
