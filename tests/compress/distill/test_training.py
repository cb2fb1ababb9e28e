"""A student in the training loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgepress.compress.distill import DistillObjective, DistillSettings, ModuleTeacher, cache_outputs
from edgepress.compress.train import TrainConfig, task_loss, to_program, train, trainable
from tests.compress.distill.nets import conv, exported, images
from tests.compress.distill.test_teacher import Data

CONFIG = TrainConfig(epochs=6, batch=16, optimizer="adamw", lr=0.01, seed=0)


def agreement(student: torch.nn.Module, teacher: torch.nn.Module) -> float:
    x = images(64)
    with torch.no_grad():
        return torch.nn.functional.mse_loss(_first(student(x)), teacher(x)).item()


def _first(outputs: object) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]  # type: ignore[index]


def test_an_exported_student_with_projectors_learns_its_teacher_and_becomes_a_program_again(tmp_path: Path) -> None:
    teacher, data = conv(8, seed=1), Data(64)
    program = exported(conv(4), images())
    student = trainable(program)
    before = agreement(student, teacher)
    settings = DistillSettings({"mse": 1, "hint": 0.1}, task_weight=0)
    objective = DistillObjective(student, ModuleTeacher(teacher), [images()], settings)
    weights = [p.detach().clone() for p in objective.projectors.parameters()]
    train(student, data, objective, CONFIG, tmp_path)
    assert not any(torch.equal(a, b) for a, b in zip(weights, objective.projectors.parameters(), strict=True))
    objective.close()
    after = to_program(student, program).module()
    assert agreement(after, teacher) < 0.5 * before


def test_kept_outputs_train_the_same_student(tmp_path: Path) -> None:
    teacher, data = ModuleTeacher(conv(8, seed=1)), Data(64)
    found = []
    for source in (teacher, cache_outputs(teacher, data, tmp_path / "outputs", dtype="float32")):
        student = trainable(exported(conv(4), images()))
        objective = DistillObjective(student, source, [images()], DistillSettings({"kd": 1}, task_weight=0.5), task_loss().loss)
        train(student, data, objective, CONFIG, tmp_path / f"run{len(found)}")
        found.append(student)
    for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
