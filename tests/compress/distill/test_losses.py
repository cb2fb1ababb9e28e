"""Distillation losses against their formulas, written out for few samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgepress.compress.distill import losses


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PAIRS: list[tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = [
    (losses.kd, (6, 5)),
    (lambda s, t: losses.dkd(s, t, torch.arange(6) % 5), (6, 5)),
    (losses.mse, (6, 5)),
    (losses.attention, (6, 4, 3, 3)),
    (losses.hint, (6, 4, 3, 3)),
    (losses.rkd_distance, (6, 5)),
    (losses.rkd_angle, (6, 5)),
    (losses.rkd, (6, 5)),
]


@pytest.mark.parametrize(("loss", "shape"), PAIRS)
def test_a_loss_is_zero_for_equal_models_and_falls_along_its_gradient(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    teacher = random(*shape, seed=0)
    assert loss(teacher.clone(), teacher).item() == pytest.approx(0, abs=1e-9)
    student = random(*shape, seed=1).requires_grad_()
    before = loss(student, teacher)
    (gradient,) = torch.autograd.grad(before, student)
    assert gradient.isfinite().all()
    after = loss(student - 1e-3 * gradient / gradient.norm(), teacher)
    assert after.item() < before.item()


def test_kd_is_the_divergence_of_softened_probabilities_times_the_squared_temperature() -> None:
    student, teacher = [0.5, -1.0, 2.0], [1.0, 0.0, 0.5]
    soft = []
    for logits in (teacher, student):
        powers = [math.exp(value / 3) for value in logits]
        soft.append([power / sum(powers) for power in powers])
    wanted = 9 * sum(p * math.log(p / q) for p, q in zip(*soft, strict=True))
    got = losses.kd(torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64), temperature=3.0)
    assert got.item() == pytest.approx(wanted, rel=1e-9)


def test_kd_takes_classes_along_dimension_1_of_dense_outputs() -> None:
    student, teacher = random(2, 5, 3, 4, seed=0), random(2, 5, 3, 4, seed=1)
    rows = [side.movedim(1, -1).reshape(-1, 5) for side in (student, teacher)]
    assert losses.kd(student, teacher).item() == pytest.approx(losses.kd(*rows).item())


def test_dkd_with_the_weights_that_kd_hides_is_kd() -> None:
    """Equation 6 of the paper: KD = TCKD + (1 - p_target) * NCKD."""
    student, teacher, labels = random(1, 5, seed=0), random(1, 5, seed=1), torch.tensor([3])
    doubt = 1 - torch.softmax(teacher / 4, dim=1)[0, 3].item()
    assert losses.dkd(student, teacher, labels, weights=(1.0, doubt)).item() == pytest.approx(losses.kd(student, teacher).item())


def test_dkd_stays_finite_where_the_teacher_is_certain() -> None:
    teacher = torch.tensor([[200.0, 0.0, -200.0]])
    student = torch.tensor([[-50.0, 3.0, 50.0]], requires_grad=True)
    loss = losses.dkd(student, teacher, torch.tensor([0]), temperature=1.0)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_attention_ignores_the_number_of_channels_and_the_scale() -> None:
    teacher = random(2, 4, 3, 3, seed=0)
    student = torch.cat([teacher, teacher], dim=1) * 7
    assert losses.attention(student, teacher).item() == pytest.approx(0, abs=1e-12)
    tokens = teacher.flatten(2).movedim(1, 2)
    assert losses.attention(tokens * 2, tokens, dim=2).item() == pytest.approx(0, abs=1e-12)
    assert losses.attention(student, teacher.flip(3)).item() > 1e-4


def test_attention_compares_maps_of_different_sizes_at_the_smaller_one() -> None:
    teacher = random(2, 4, 6, 6, seed=0).abs()
    student = losses.same_places(teacher.square(), teacher[..., :3, :3], first=2)[0].sqrt()
    assert student.shape == (2, 4, 3, 3)
    assert losses.attention(student, teacher).item() == pytest.approx(0, abs=1e-12)


def test_rkd_ignores_rotation_and_scale_but_not_the_shape_of_the_batch() -> None:
    teacher = random(5, 3, seed=0)
    turn = torch.linalg.qr(random(3, 3, seed=1))[0]
    turned = 4 * (teacher @ turn) + 2
    for loss in (losses.rkd_distance, losses.rkd_angle):
        assert loss(turned, teacher).item() == pytest.approx(0, abs=1e-10)
        assert loss(teacher * torch.tensor([1, 1, 5.0]), teacher).item() > 1e-3


def test_rkd_angle_equals_the_cosines_of_difference_vectors() -> None:
    student, teacher = random(4, 3, seed=0), random(4, 3, seed=1)
    cosines = []
    for side in (student, teacher):
        difference = side[None, :, :] - side[:, None, :]
        unit = difference / difference.norm(dim=2, keepdim=True).clamp_min(1e-12)
        cosines.append(torch.einsum("jid,jkd->jik", unit, unit))
    wanted = torch.nn.functional.smooth_l1_loss(cosines[0], cosines[1])
    assert losses.rkd_angle(student, teacher).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_rkd_of_a_single_sample_has_nothing_to_compare() -> None:
    student = random(1, 3, seed=0).requires_grad_()
    loss = losses.rkd(student, random(1, 3, seed=1))
    loss.backward()
    assert loss.item() == 0 and student.grad is not None
