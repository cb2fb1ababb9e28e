"""Distillation losses: what the student should copy, each one function of student and teacher tensors to a scalar.

Gradients flow into the student alone; callers compute the teacher's tensors without gradients.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: Keeps square roots and divisions away from zero without showing in float32 sums.
_EPSILON = 1e-12


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = 1) -> Tensor:
    """Divergence of softened class probabilities (Hinton, Vinyals & Dean 2015, section 2).

    The factor temperature^2 keeps the gradient's size independent of the temperature, as that section asks for.

    Args:
        student: float logits with the classes along `dim`, e.g. (n, classes) or (n, classes, h, w).
        teacher: the same shape.
        temperature: above 0; both sides are divided by it.
        dim: the axis of the classes.

    Returns:
        KL(teacher || student) * temperature^2, a scalar: summed over classes, averaged over the rest.
    """
    wanted = F.log_softmax(teacher / temperature, dim=dim)
    got = F.log_softmax(student / temperature, dim=dim)
    return _divergence(wanted, got, dim).mean() * temperature**2


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, weights: tuple[float, float] = (1.0, 8.0)) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al. 2022, equation 7): alpha * TCKD + beta * NCKD.

    TCKD is the divergence of (target, not target); NCKD that among the classes other than the target, which plain KD scales down by the
    teacher's doubt.

    Args:
        student: float logits (n, classes).
        teacher: the same shape.
        labels: int64 (n,), the target classes.
        temperature: above 0.
        weights: alpha and beta; the paper uses (1, 8) on CIFAR-100.

    Returns:
        A scalar, scaled by temperature^2 like `kd`. With weights (1, 1 - p_target) of the teacher it equals `kd`.
    """
    alpha, beta = weights
    target = F.one_hot(labels, student.shape[1]).bool()
    wanted_binary, wanted_others = _decoupled(teacher / temperature, target)
    got_binary, got_others = _decoupled(student / temperature, target)
    tckd = _divergence(wanted_binary, got_binary, 1).mean()
    nckd = _divergence(wanted_others, got_others, 1).mean()
    return (alpha * tckd + beta * nckd) * temperature**2


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (n, 2) of target and rest, and (n, classes - 1) among the rest."""
    others = logits[~target].view(len(logits), -1)
    whole = torch.logsumexp(logits, dim=1)
    binary = torch.stack([logits[target] - whole, torch.logsumexp(others, dim=1) - whole], dim=1)
    return binary, F.log_softmax(others, dim=1)


def _divergence(wanted: Tensor, got: Tensor, dim: int) -> Tensor:
    """KL divergence along `dim` of two tensors of log probabilities."""
    return cast(Tensor, (wanted.exp() * (wanted - got)).sum(dim=dim))


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of outputs (Ba & Caruana 2014, section 2.1); the choice for regression.

    Args:
        student: float, any shape.
        teacher: the same shape.
    """
    return F.mse_loss(student, teacher)


def attention(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis 2017, equation 2): where a layer is active, not by which channels.

    The map of a layer is the sum of squares over its channels, flattened and scaled to unit length. A larger map is averaged down to the
    smaller one's size.

    Args:
        student: float (n, c, *places), or with the channels along `dim`.
        teacher: float (n, c', *places'), the same number of dimensions; channels may differ.
        dim: the axis of the channels.

    Returns:
        Mean squared difference of the maps, a scalar.
    """
    maps = [tensor.square().mean(dim=dim) for tensor in (student, teacher)]
    got, wanted = (F.normalize(same.flatten(1), dim=1) for same in same_places(maps[0], maps[1], first=1))
    return F.mse_loss(got, wanted)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNet hint (Romero et al. 2015, equation 3): mean squared difference of a layer's features.

    Args:
        student: float features after the projector, see `projectors.projector`.
        teacher: float features of the same shape.
    """
    return F.mse_loss(student, teacher)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between the samples of a batch (Park et al. 2019, equations 5 to 8), each side divided by its mean distance.

    Args:
        student: float (n, ...), flattened to one embedding per sample.
        teacher: float (n, ...); the embedding size may differ.

    Returns:
        Huber loss, averaged over ordered pairs of samples; 0 for a batch of one.
    """
    got, wanted = (_distances(side.flatten(1)) for side in (student, teacher))
    pairs = ~torch.eye(len(got), dtype=torch.bool, device=got.device)
    if not bool(pairs.any()):
        return (student * 0).sum()
    scaled = [side[pairs] / side[pairs].mean().clamp_min(_EPSILON) for side in (got, wanted)]
    return F.smooth_l1_loss(scaled[0], scaled[1])


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angles that triplets of samples form (Park et al. 2019, equations 9 to 11).

    Cosines come from the Gram matrix, so memory grows as n^3 and does not depend on the embedding's size.

    Args:
        student: float (n, ...), flattened to one embedding per sample.
        teacher: float (n, ...); the embedding size may differ.

    Returns:
        Huber loss of the cosines, averaged over triplets of samples, a scalar.
    """
    got, wanted = (_cosines(side.flatten(1)) for side in (student, teacher))
    return F.smooth_l1_loss(got, wanted)


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """`rkd_distance` + 2 * `rkd_angle`: the ratio of weights (25 : 50) that Park et al. 2019 use in section 4.2.

    Args:
        student: float (n, ...).
        teacher: float (n, ...).
    """
    return rkd_distance(student, teacher) + 2 * rkd_angle(student, teacher)


def _squared_distances(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix (n, n) of the centred embedding and the squared distances (n, n)."""
    centred = embedding - embedding.mean(dim=0)  # distances stay, cancellation in the next line shrinks
    gram = centred @ centred.T
    squares = gram.diagonal()
    return gram, (squares[:, None] + squares[None, :] - 2 * gram).clamp_min(_EPSILON)


def _distances(embedding: Tensor) -> Tensor:
    return _squared_distances(embedding)[1].sqrt()


def _cosines(embedding: Tensor) -> Tensor:
    """[j, i, k]: the cosine of the angle at j between the directions to i and to k; 0 where two of them coincide."""
    gram, squared = _squared_distances(embedding)
    products = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    inverse = squared.rsqrt() * ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    return products * inverse[:, :, None] * inverse[:, None, :]


def same_places(student: Tensor, teacher: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Average the larger of two tensors down so that the dimensions from `first` on (at most 3) agree.

    Args:
        student: float (..., *places).
        teacher: float (..., *places').
        first: number of leading dimensions that are no places, 1 or 2.
    """
    sizes = [tuple(side.shape[first:]) for side in (student, teacher)]
    if sizes[0] == sizes[1]:
        return student, teacher
    smaller = [min(pair) for pair in zip(*sizes, strict=True)]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(smaller)]
    pooled = [pool(side if first == 2 else side.unsqueeze(1), smaller) for side in (student, teacher)]
    return (pooled[0], pooled[1]) if first == 2 else (pooled[0].squeeze(1), pooled[1].squeeze(1))
