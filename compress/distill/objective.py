"""The objective of a student: its task, and what it copies from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.distill import losses
from edgepress.compress.distill.features import Features, layers_of
from edgepress.compress.distill.pairs import Pair, automatic_pairs, named_pairs
from edgepress.compress.distill.projectors import aligned, projector
from edgepress.compress.distill.teacher import Lesson, ModuleTeacher, Teacher
from edgepress.compress.project.outputs import flatten
from edgepress.targets.errors import TrainingError

#: Losses on the models' outputs, and on outputs of paired layers.
OUTPUT_LOSSES = ("kd", "dkd", "mse", "rkd", "rkd_distance", "rkd_angle")
FEATURE_LOSSES = ("hint", "attention")
_CLASSES = frozenset({"kd", "dkd"})

#: The task's loss (`task_loss(...).loss`): what the module returned and the labels -> scalar.
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class DistillSettings:
    """What a student copies.

    Attributes:
        losses: name of a loss -> its weight, above 0; see `OUTPUT_LOSSES` and `FEATURE_LOSSES`, and `parse_loss`.
        task_weight: of the task's loss; 0 trains without labels.
        temperature: of kd and dkd.
        dkd: its alpha and beta.
        pairs: (student's layer, teacher's layer), shell wildcards allowed, for hint and attention; None finds them by shape and depth.
        output: which of the models' outputs is copied; None for all of them.
        seed: of the projectors' initial weights.

    Raises:
        TrainingError: an unknown loss or a number out of its range.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"kd": 1.0})
    task_weight: float = 1.0
    temperature: float = 4.0
    dkd: tuple[float, float] = (1.0, 8.0)
    pairs: tuple[tuple[str, str], ...] | None = None
    output: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        parse_loss(self.losses)
        if not self.temperature > 0:
            raise TrainingError(f"temperature {self.temperature} of distillation", "it must be above 0", "4 is a good start.")
        if not self.task_weight >= 0:
            raise TrainingError(f"task_weight {self.task_weight}", "it must be 0 or more", "0 trains on the teacher alone.")

    @property
    def needs_features(self) -> bool:
        """Do any of the losses look inside the models?"""
        return any(name in FEATURE_LOSSES for name in self.losses)


def parse_loss(spec: str | Mapping[str, float]) -> dict[str, float]:
    """`"kd"` -> `{"kd": 1.0}`; `{"kd": 1, "hint": 0.5}` -> the same with floats.

    Raises:
        TrainingError: an unknown loss (the nearest is named), none at all, or a weight that is no number above 0.
    """
    known = OUTPUT_LOSSES + FEATURE_LOSSES
    given = {spec: 1.0} if isinstance(spec, str) else dict(spec)
    for name, weight in given.items():
        if name not in known:
            near = get_close_matches(str(name).lower(), known, 1)
            advice = f"Did you mean {near[0]!r}?" if near else f"Use {', '.join(known)}."
            raise TrainingError(f"unknown distillation loss {name!r}", "", advice)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise TrainingError(f"distillation loss {name!r} has weight {weight!r}", "it must be a number above 0", "Leave it out.")
    if not given:
        raise TrainingError("distillation has no loss", "", f"Name one of {', '.join(known)}.")
    return {name: float(weight) for name, weight in given.items()}


class DistillObjective:
    """task_weight * task loss + the weighted sum of distillation losses; an objective of `compress.train.train`.

    The student is watched until `close`, so that one forward pass gives outputs and features.

    Args:
        student: the module that is trained, in eval mode now; wrappers around it (for several processes) may come later.
        teacher: of the same task. Losses on features need a `ModuleTeacher`.
        inputs: an example batch, positional, as the student takes them.
        settings: what is copied.
        task: loss of the student's own task; None where `task_weight` is 0.

    Raises:
        TrainingError: student and teacher have other outputs (shapes are named), layers cannot be paired, a loss that needs classes meets a
            single output value, or the task's loss is missing.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, inputs: Sequence[Tensor], settings: DistillSettings, task: Loss | None = None
    ) -> None:
        if task is None and settings.task_weight > 0:
            raise TrainingError("distillation has no task loss", f"task_weight is {settings.task_weight}", "Give one, or weight 0.")
        self.settings, self._teacher, self._task = settings, teacher, task
        self.pairs: tuple[Pair, ...] = ()
        self._features: Features | None = None
        self.projectors = nn.ModuleList()
        with torch.no_grad():
            outputs = flatten(student(*inputs))
            lesson = teacher(inputs, torch.arange(len(inputs[0])))
        self._outputs = _copied(outputs, lesson.outputs, settings)
        if settings.needs_features:
            self._watch(student, inputs)

    def modules(self) -> Sequence[nn.Module]:
        """The projectors: trained along with the student, thrown away with the objective."""
        return [self.projectors] if any(True for _ in self.projectors.parameters()) else []

    def close(self) -> None:
        """Leave student and teacher as they were."""
        if self._features is not None:
            self._features.close()
            self._features = None
        if isinstance(self._teacher, ModuleTeacher):
            self._teacher.record(())

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            module: the student, or what wraps it.
            inputs: positional inputs, dimension 0 the sample.
            labels: as the task's loss takes them (class numbers or, blended, probabilities); None without labels.
            index: int64 (n,), rows in the training data.

        Returns:
            A scalar, float32.

        Raises:
            TrainingError: a loss that needs labels gets none.
        """
        lesson = self._teacher(inputs, index)
        raw = module(*inputs)
        features = self._features.take() if self._features is not None else {}
        outputs = flatten(raw)
        with torch.autocast(outputs[0].device.type, enabled=False):  # differences of nearly equal numbers: never in half precision
            total = self._distilled(outputs, features, lesson, labels)
        if self._task is not None and self.settings.task_weight > 0:
            total = total + self.settings.task_weight * self._task(raw, _needed(labels, "the task's loss"))
        return total

    def _distilled(self, outputs: Sequence[Tensor], features: Mapping[str, Tensor], lesson: Lesson, labels: Tensor | None) -> Tensor:
        """The weighted sum of distillation losses."""
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for name, weight in self.settings.losses.items():
            if name in FEATURE_LOSSES:
                total = total + weight * self._feature_loss(name, features, lesson)
            else:
                each = [self._output_loss(name, outputs[i], lesson.outputs[i], labels) for i in self._outputs]
                total = total + weight * torch.stack(each).mean()
        return total

    def _output_loss(self, name: str, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        got, wanted = student.float(), teacher.float()
        if name == "kd":
            return losses.kd(got, wanted, self.settings.temperature)
        if name == "dkd":
            classes = _needed(labels, "dkd")
            hard = classes.argmax(dim=1) if classes.is_floating_point() else classes
            return losses.dkd(got, wanted, hard, self.settings.temperature, self.settings.dkd)
        plain: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": losses.mse,
            "rkd": losses.rkd,
            "rkd_distance": losses.rkd_distance,
            "rkd_angle": losses.rkd_angle,
        }
        return plain[name](got, wanted)

    def _feature_loss(self, name: str, features: Mapping[str, Tensor], lesson: Lesson) -> Tensor:
        each = []
        for pair, project in zip(self.pairs, self.projectors, strict=True):
            got, wanted = features[pair.student.name].float(), lesson.features[pair.teacher.name].float()
            if name == "attention":
                each.append(losses.attention(got, wanted, pair.dim))
            else:
                each.append(losses.hint(*aligned(project.to(got.device)(got), wanted, pair.dim)))
        return torch.stack(each).mean()

    def _watch(self, student: nn.Module, inputs: Sequence[Tensor]) -> None:
        teacher = self._teacher
        if not isinstance(teacher, ModuleTeacher):
            wanted = ", ".join(name for name in self.settings.losses if name in FEATURE_LOSSES)
            raise TrainingError(f"{wanted} copies layers", f"{type(teacher).__name__} gives outputs alone", "Use one model as the teacher.")
        ours, theirs = layers_of(student, inputs), teacher.layers(inputs)
        named = self.settings.pairs
        self.pairs = automatic_pairs(ours, theirs) if named is None else named_pairs(named, ours, theirs)
        for number, pair in enumerate(self.pairs):
            shapes = pair.student.shape, pair.teacher.shape
            hinted = "hint" in self.settings.losses
            self.projectors.append(projector(*shapes, pair.dim, self.settings.seed + number) if hinted else nn.Identity())
        teacher.record(tuple(dict.fromkeys(pair.teacher.name for pair in self.pairs)))
        self._features = Features(student, tuple(dict.fromkeys(pair.student.name for pair in self.pairs)))


def _needed(labels: Tensor | None, what: str) -> Tensor:
    if labels is None:
        raise TrainingError(f"{what} needs labels", "the training data has none", "Set task_weight to 0 and use kd.")
    return labels


def _copied(student: Sequence[Tensor], teacher: Sequence[Tensor], settings: DistillSettings) -> tuple[int, ...]:
    """Numbers of the outputs that are copied, checked."""
    ours, theirs = ([tuple(output.shape[1:]) for output in side] for side in (student, teacher))
    if ours != theirs:
        raise TrainingError(
            f"the student gives {_spell(ours)} per sample, the teacher {_spell(theirs)}",
            "distillation needs the same outputs",
            "Use a teacher of the same task, or give it a head with these outputs.",
        )
    if settings.output is not None and not 0 <= settings.output < len(ours):
        raise TrainingError(f"output {settings.output} is to be copied", f"the models have {len(ours)}", "Count from 0.")
    chosen = [i for i in range(len(ours)) if student[i].is_floating_point()] if settings.output is None else [settings.output]
    for name in settings.losses:
        for i in chosen:
            if name in _CLASSES and (not ours[i] or ours[i][0] < 2 or (name == "dkd" and len(ours[i]) > 1)):
                needs = "one row of class scores per sample" if name == "dkd" else "two or more classes along dimension 1"
                raise TrainingError(f"{name} needs {needs}", f"output {i} has {ours[i]} per sample", "Use mse, or another `output`.")
    return tuple(chosen)


def _spell(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes)) or "no outputs"
