"""Projectors: the small trained map from a student's channels to a teacher's (Romero et al. 2015, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.distill.losses import same_places
from edgepress.targets.errors import TrainingError


class Projector(nn.Module):  # type: ignore[misc]
    """A linear map over one axis, the same at every place: a 1x1 convolution, or a linear layer where the channels are last.

    Args:
        inputs: channels of the student.
        outputs: channels of the teacher.
        dim: the axis of the channels.
        seed: of the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        self.dim = dim
        bound = (6.0 / (inputs + outputs)) ** 0.5  # Glorot & Bengio 2010, equation 16
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter((torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Student features with `inputs` channels along `dim` -> the same with `outputs` channels."""
        if self.dim == features.ndim - 1:
            return F.linear(features, self.weight, self.bias)
        moved = F.linear(features.movedim(self.dim, -1), self.weight, self.bias)
        return moved.movedim(-1, self.dim)


def projector(student: Sequence[int], teacher: Sequence[int], dim: int, seed: int = 0) -> nn.Module:
    """What brings a student's features to a teacher's channels; nothing where they already agree.

    Args:
        student: shape of its features, the batch included.
        teacher: shape of its features.
        dim: the axis of the channels.
        seed: of the initial weights.

    Raises:
        TrainingError: the shapes have different numbers of dimensions, so that no layer maps one to the other place by place.
    """
    if len(student) != len(teacher):
        raise TrainingError(
            f"features of shape {tuple(student)} cannot be matched with {tuple(teacher)}",
            "they differ in the number of dimensions",
            "Name another pair of layers.",
        )
    return nn.Identity() if student[dim] == teacher[dim] else Projector(student[dim], teacher[dim], dim, seed)


def channel_dim(student: Sequence[int], teacher: Sequence[int], preferred: int) -> int:
    """The axis of the channels: the only one in which the shapes differ, else `preferred`.

    Args:
        student: shape of its features, the batch included.
        teacher: shape of its features, as many dimensions.
        preferred: what the layer that makes them suggests.
    """
    different = [dim for dim in range(1, len(student)) if student[dim] != teacher[dim]]
    return different[0] if len(different) == 1 else preferred % len(student)


def aligned(student: Tensor, teacher: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Average the larger features down where the sizes of their places differ.

    Args:
        student: float features after the projector.
        teacher: float features with as many channels.
        dim: the axis of the channels.
    """
    if student.shape == teacher.shape:
        return student, teacher
    moved = [cast(Tensor, side.movedim(dim, 1)) for side in (student, teacher)]
    return same_places(moved[0], moved[1], first=2)
