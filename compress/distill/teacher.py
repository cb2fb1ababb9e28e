"""Teachers: what gives the outputs that a student copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.distill.features import Features, Layer, layers_of
from edgepress.compress.project.outputs import flatten
from edgepress.compress.training.devices import move
from edgepress.targets.errors import TrainingError

#: How an ensemble's members are averaged.
MEANS = ("probabilities", "logits")


@dataclass(frozen=True)
class Lesson:
    """What a teacher says about a batch.

    Attributes:
        outputs: its output tensors, dimension 0 the sample; float.
        features: outputs of the layers that were asked for, by name.
    """

    outputs: tuple[Tensor, ...]
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Teacher(Protocol):
    """Gives lessons, without gradients."""

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Lesson:
        """The lesson for a batch.

        Args:
            inputs: positional inputs as the student gets them, dimension 0 the sample.
            index: int64 (n,), the samples' rows in the training data.
        """
        ...


class ModuleTeacher:
    """A model as a teacher: the original, or another checkpoint.

    Args:
        model: in eval mode; its parameters stay as they are, it follows its inputs to their device. An exported program is opened.
        layers: names of layers whose outputs belong to the lesson, as `layers_of` names them.
    """

    def __init__(self, model: nn.Module | ExportedProgram, layers: Sequence[str] = ()) -> None:
        self.module: nn.Module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
        self._features: Features | None = None
        self.record(layers)

    def layers(self, inputs: Sequence[Tensor]) -> tuple[Layer, ...]:
        """Every layer that it could record; see `layers_of`."""
        self._follow(inputs)
        return layers_of(self.module, inputs)

    def record(self, layers: Sequence[str]) -> None:
        """Put the outputs of these layers into every further lesson, in place of earlier ones."""
        if self._features is not None:
            self._features.close()
        self._features = Features(self.module, layers, always=True) if layers else None

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Lesson:
        """See `Teacher`; `index` is not used."""
        self._follow(inputs)
        with torch.no_grad():
            outputs = tuple(flatten(self.module(*inputs)))
        return Lesson(outputs, self._features.take() if self._features is not None else {})

    def _follow(self, inputs: Sequence[Tensor]) -> None:
        first = next(self.module.parameters(), None)
        if first is not None and first.device != inputs[0].device:
            move(self.module, inputs[0].device)


class EnsembleTeacher:
    """Several teachers averaged, output by output (Hinton, Vinyals & Dean 2015, section 1); it has no features.

    Args:
        members: teachers with equal outputs.
        mean: "probabilities" (the arithmetic mean; outputs are its logarithms along dimension 1) or "logits" (the geometric mean of
            probabilities, and the choice for regression).

    Raises:
        TrainingError: no members, or an unknown mean.
    """

    def __init__(self, members: Sequence[Teacher], mean: str = "probabilities") -> None:
        if not members:
            raise TrainingError("the ensemble has no members", "", "Name at least one teacher.")
        if mean not in MEANS:
            raise TrainingError(f"unknown mean {mean!r} of an ensemble", "", f"Use one of {', '.join(MEANS)}.")
        self._members, self._mean = tuple(members), mean

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Lesson:
        """See `Teacher`.

        Raises:
            TrainingError: members give outputs of different shapes.
        """
        lessons = [member(inputs, index).outputs for member in self._members]
        shapes = [[tuple(output.shape) for output in outputs] for outputs in lessons]
        for number, other in enumerate(shapes[1:], start=2):
            if other != shapes[0]:
                raise TrainingError(
                    f"teacher {number} of the ensemble gives outputs {other}, teacher 1 {shapes[0]}", "", "Use teachers of one task."
                )
        return Lesson(tuple(self._average(outputs) for outputs in zip(*lessons, strict=True)))

    def _average(self, outputs: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack([output.float() for output in outputs])
        if self._mean == "logits" or stacked.ndim < 3:
            return stacked.mean(dim=0)
        count = torch.tensor(float(len(outputs)), device=stacked.device)
        return torch.logsumexp(F.log_softmax(stacked, dim=2), dim=0) - count.log()
