"""A metric by name or callable, seen the same way: per-sample scores where it has them, a value of the whole set always.

Built in, in numpy: accuracy, top5, mean_absolute_error, mean_squared_error, equal to torchmetrics'. Everything else comes
from `metric_library` (torchmetrics, or the user's own function), which imports torch only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import MeasurementError, ProjectError
from edgepress.validators.labels import IGNORE, Layout, class_labels

Array = NDArray[Any]
Floats = NDArray[np.float64]
Outputs = Array | Mapping[str, Array] | Sequence[Array]

#: Drops of fraction-like metrics are told in percentage points.
POINTS = "pp"


@dataclass(frozen=True)
class BoundMetric:
    """A metric with everything settled that must not differ between two models: labels, classes, logits or probabilities.

    Attributes:
        name: of the metric.
        unit: `pp` where a value is a fraction (a drop is 100 times the difference), else the metric's own, its name.
        higher_is_better: the direction.
        samples: number of samples n.
        per_sample: outputs -> float64 scores of shape (n,), or None for a metric of the whole set.
        over: outputs -> a function of indices (int64, shape (m,)) that gives the value on those samples, NaN where it is
            undefined there.
    """

    name: str
    unit: str
    higher_is_better: bool
    samples: int
    per_sample: Callable[[tuple[Array, ...]], Floats] | None
    over: Callable[[tuple[Array, ...]], Callable[[NDArray[np.int64]], float]] | None = None

    @property
    def scale(self) -> float:
        """What turns a difference of values into a drop in `unit`."""
        return 100.0 if self.unit == POINTS else 1.0

    def scores(self, outputs: Outputs) -> Floats | None:
        """Per-sample scores, float64 of shape (n,); None for a metric of the whole set.

        Raises:
            MeasurementError: a score is not finite, or their number is not n.
        """
        if self.per_sample is None:
            return None
        scores = np.asarray(self.per_sample(self._checked(outputs)), dtype=np.float64)
        if scores.shape != (self.samples,):
            raise MeasurementError(
                f"metric {self.name!r} gave scores of shape {scores.shape}",
                f"{self.samples} samples need one score each",
                "Return one number per sample.",
            )
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise MeasurementError(
                f"metric {self.name!r} is {scores[bad[0]]} on sample {bad[0]} ({len(bad)} of {self.samples} samples are not finite)",
                remedy="Find out which outputs or labels are not finite.",
            )
        return scores

    def sampler(self, outputs: Outputs) -> Callable[[NDArray[np.int64]], float]:
        """The value as a function of sample indices (int64, shape (m,))."""
        if self.over is not None:
            return self.over(self._checked(outputs))
        scores = self.scores(outputs)
        assert scores is not None
        return lambda index: float(scores[index].mean())

    def value(self, outputs: Outputs) -> float:
        """The metric on all samples.

        Raises:
            MeasurementError: it is not a finite number.
        """
        value = self.sampler(outputs)(np.arange(self.samples))
        if not np.isfinite(value):
            raise MeasurementError(f"metric {self.name!r} is {value} on {self.samples} samples", "", "Check the outputs and the labels.")
        return value

    def _checked(self, outputs: Outputs) -> tuple[Array, ...]:
        arrays = as_arrays(outputs)
        for array in arrays:
            if array.ndim == 0 or len(array) != self.samples:
                raise MeasurementError(f"outputs of shape {array.shape} for {self.samples} labels", "the first dimension is the batch")
            nan = np.isnan(array.reshape(self.samples, -1)).any(axis=1) if np.issubdtype(array.dtype, np.floating) else np.zeros(0, bool)
            if nan.any():
                raise MeasurementError(
                    f"outputs are NaN on {np.count_nonzero(nan)} of {self.samples} samples, first on sample {np.flatnonzero(nan)[0]}",
                    f"metric {self.name!r} has no value there",
                    "Look for an overflow: `edgepress explain` compares layer by layer.",
                )
        return arrays


@dataclass(frozen=True)
class Metric:
    """A metric before it has seen data.

    Attributes:
        name: as the recipe wrote it, or the callable's name.
        unit: `pp`, or the metric's own name; a callable without a `unit` attribute settles it with its first scores.
        higher_is_better: the direction.
        binder: (outputs, labels) -> BoundMetric.
    """

    name: str
    unit: str
    higher_is_better: bool
    binder: Callable[[tuple[Array, ...], Array], BoundMetric]

    def bind(self, reference: Outputs, labels: Array) -> BoundMetric:
        """Settle the metric on the labels and the reference model's outputs; score every other model with the result.

        Args:
            reference: outputs of the fp32 original: one array, or several by name or position, dimension 0 is the batch.
            labels: array with the batch in dimension 0.

        Raises:
            ProjectError: no samples, labels of the wrong dtype or out of range, shapes that do not fit.
            MeasurementError: the outputs are NaN, or their number is not that of the labels.
        """
        labels = np.asarray(labels)
        if labels.ndim == 0 or len(labels) == 0:
            raise ProjectError(f"metric {self.name!r} has no samples", "the validation set is empty", "Give at least one sample.")
        return self.binder(as_arrays(reference), labels)

    def scores(self, outputs: Outputs, labels: Array) -> Floats | None:
        """`bind` on these outputs, then `BoundMetric.scores`."""
        return self.bind(outputs, labels).scores(outputs)

    def value(self, outputs: Outputs, labels: Array) -> float:
        """`bind` on these outputs, then `BoundMetric.value`: a fraction for `pp` metrics."""
        return self.bind(outputs, labels).value(outputs)


def metric_of(spec: str | Callable[..., Any], name: str | None = None) -> Metric:
    """The metric a recipe asks for.

    Args:
        spec: a built-in or torchmetrics name, or a callable (outputs, labels) -> per-sample scores. The callable gets torch
            tensors (a tuple of them where the model has several outputs). Attributes it may carry: `higher_is_better`
            (True unless set) and `unit` (`pp` for fractions).
        name: what to call it in reports; default: its own name.

    Raises:
        ConfigError: the name is unknown (the nearest is named), or does not say which direction is better.
    """
    from edgepress.validators.metric_library import of_callable, of_torchmetrics

    if not isinstance(spec, str):
        return of_callable(spec, name or str(getattr(spec, "__name__", type(spec).__name__)))
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    return of_torchmetrics(spec)


def as_arrays(outputs: Outputs) -> tuple[Array, ...]:
    """Outputs in positional order."""
    if isinstance(outputs, Mapping):
        return tuple(np.asarray(value) for value in outputs.values())
    if isinstance(outputs, (tuple, list)):
        return tuple(np.asarray(value) for value in outputs)
    return (np.asarray(outputs),)


def _bind_accuracy(reference: tuple[Array, ...], labels: Array) -> BoundMetric:
    layout, target = class_labels(reference[0], labels, "accuracy")

    def scores(outputs: tuple[Array, ...]) -> Floats:
        predicted = layout.predicted(outputs[0])
        return _mean_where((predicted == target), target)

    return BoundMetric("accuracy", POINTS, True, len(labels), scores)


def _bind_top5(reference: tuple[Array, ...], labels: Array) -> BoundMetric:
    layout, target = class_labels(reference[0], labels, "top5")
    if layout.task != "multiclass" or layout.classes < 6:
        raise ProjectError(f"metric 'top5' on {layout.classes} classes", "the right one is always among five", "Use `metric: accuracy`.")

    def scores(outputs: tuple[Array, ...]) -> Floats:
        return _mean_where(_rank(layout, outputs[0], target) < 5, target)

    return BoundMetric("top5", POINTS, True, len(labels), scores)


def _rank(layout: Layout, outputs: Array, target: Array) -> Array:
    """How many classes come before the right one; equal scores go by class number, so a constant model is not 100 % right."""
    values = layout.values(outputs)
    right = np.expand_dims(np.where(target == IGNORE, 0, target), 1)
    own = np.take_along_axis(values, right, axis=1)
    number = np.arange(values.shape[1]).reshape(1, -1, *[1] * (values.ndim - 2))
    ahead: Array = np.count_nonzero((values > own) | ((values == own) & (number < right)), axis=1)
    return ahead


def _mean_where(hit: Array, target: Array) -> Floats:
    """Mean over everything but the batch, without ignored positions (`class_labels` made sure that some are left)."""
    hit, kept = hit.reshape(len(hit), -1), (target != IGNORE).reshape(len(hit), -1)
    scores: Floats = (hit & kept).sum(axis=1) / kept.sum(axis=1)
    return scores


def _bind_error(name: str, power: int) -> Callable[[tuple[Array, ...], Array], BoundMetric]:
    def bind(reference: tuple[Array, ...], labels: Array) -> BoundMetric:
        target = _numbers(name, reference[0], labels)

        def scores(outputs: tuple[Array, ...]) -> Floats:
            gap = np.abs(outputs[0].astype(np.float64).reshape(target.shape) - target) ** power
            mean: Floats = gap.mean(axis=1)
            return mean

        return BoundMetric(name, name, False, len(labels), scores)

    return bind


def _numbers(name: str, outputs: Array, labels: Array) -> Floats:
    if not (np.issubdtype(labels.dtype, np.number) or labels.dtype == np.bool_):
        raise ProjectError(f"metric {name!r} needs numbers as labels, not {labels.dtype}")
    if outputs.size != labels.size or len(outputs) != len(labels):
        raise ProjectError(
            f"metric {name!r}: outputs have shape {outputs.shape}, labels {labels.shape}", "", "Give labels in the shape of the outputs."
        )
    target: Floats = labels.astype(np.float64).reshape(len(labels), -1)
    bad = np.argwhere(~np.isfinite(target))
    if len(bad):
        raise ProjectError(f"the label of sample {bad[0][0]} is {target[tuple(bad[0])]}", f"metric {name!r} needs finite labels")
    return target


BUILT_IN: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", POINTS, True, _bind_accuracy),
    "top5": Metric("top5", POINTS, True, _bind_top5),
    "mean_absolute_error": Metric("mean_absolute_error", "mean_absolute_error", False, _bind_error("mean_absolute_error", 1)),
    "mean_squared_error": Metric("mean_squared_error", "mean_squared_error", False, _bind_error("mean_squared_error", 2)),
}
