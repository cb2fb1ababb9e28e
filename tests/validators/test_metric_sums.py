"""Resamples of metrics whose state is a sum over samples: the values of going over the samples again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics

from edgepress.validators.metric_library import of_torchmetrics
from edgepress.validators.metric_sums import of_sums

MAPS = torch.rand(60, 3, 24, 24, generator=torch.Generator().manual_seed(0)).softmax(1)
CLASSES = torch.randint(0, 3, (60, 24, 24), generator=torch.Generator().manual_seed(1))


def going_over(metric: torchmetrics.Metric, predicted: torch.Tensor, wanted: torch.Tensor) -> Callable[[Any], Any]:
    def value(index: Any) -> Any:
        metric.reset()
        metric.update(predicted[torch.from_numpy(index)], wanted[torch.from_numpy(index)])
        return metric.compute()

    return value


@pytest.mark.parametrize(
    "metric",
    [
        torchmetrics.JaccardIndex(task="multiclass", num_classes=3),
        torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro"),
        torchmetrics.CohenKappa(task="multiclass", num_classes=3),
    ],
)
def test_sums_give_the_values_of_going_over_the_samples(metric: torchmetrics.Metric) -> None:
    direct = going_over(metric, MAPS, CLASSES)
    sums = of_sums(metric, MAPS, CLASSES, direct)
    assert sums is not direct
    random = np.random.default_rng(0)
    for _ in range(5):
        index = random.integers(0, 60, 60)
        assert float(sums(index)) == pytest.approx(float(direct(index)), abs=1e-6)


class Largest(torchmetrics.Metric):
    """Calls its state a sum and keeps the largest value in it."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predicted: torch.Tensor, wanted: torch.Tensor) -> None:
        self.largest = torch.maximum(self.largest, predicted.max())

    def compute(self) -> torch.Tensor:
        return self.largest


@pytest.mark.parametrize("metric", [Largest(), torchmetrics.AUROC(task="multiclass", num_classes=3), torchmetrics.MeanMetric()])
def test_a_state_that_is_no_sum_is_left_alone(metric: torchmetrics.Metric) -> None:
    direct = going_over(metric, MAPS, CLASSES)
    assert of_sums(metric, MAPS, CLASSES, direct) is direct


def test_a_metric_of_maps_is_bound_to_sums() -> None:
    bound = of_torchmetrics("multiclass_jaccard_index").bind((MAPS.numpy(),), CLASSES.numpy())
    assert bound.over is not None
    expected = torchmetrics.functional.jaccard_index(MAPS[:30], CLASSES[:30], task="multiclass", num_classes=3)
    assert bound.over((MAPS.numpy(),))(np.arange(30)) == pytest.approx(float(expected), abs=1e-6)
