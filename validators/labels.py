"""Labels of classification, checked once: their layout against the outputs, dtype and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import ProjectError

Array = NDArray[Any]

#: A label with this value is left out, as in `torch.nn.functional.cross_entropy`.
IGNORE = -100


@dataclass(frozen=True)
class Layout:
    """How outputs are read as classes; settled on the reference model, so that every model is read alike.

    Attributes:
        task: `binary`, `multiclass` or `multilabel`.
        classes: number of classes (2 for binary) or of labels.
        axis: where the classes lie in multiclass outputs.
        logits: True when outputs are logits, False when they are probabilities (all of the reference's lie in [0, 1],
            the rule of torchmetrics).
    """

    task: str
    classes: int
    axis: int
    logits: bool

    def values(self, outputs: Array) -> Array:
        """Outputs with classes in dimension 1: (n, classes, ...); binary and multilabel as they are, without a class axis of 1."""
        if self.task == "multiclass":
            return np.moveaxis(outputs, self.axis, 1)
        return _without_unit_axis(outputs) if self.task == "binary" else outputs

    def predicted(self, outputs: Array) -> Array:
        """Class numbers of shape (n, ...), or 0/1 per label. The first of equal classes wins."""
        values = self.values(outputs)
        if self.task == "multiclass":
            best: Array = values.argmax(axis=1)
            return best
        return (values > (0.0 if self.logits else 0.5)).astype(np.int64)


def class_labels(outputs: Array, labels: Array, metric: str) -> tuple[Layout, Array]:
    """The layout of classification outputs, and the labels as int64 in the shape of the predictions.

    Args:
        outputs: logits or probabilities: (n, classes), (n, classes, ...), (n, ..., classes), or binary (n,), (n, 1), (n, 1, ...);
            multilabel: (n, labels) with labels of the same shape.
        labels: integers or bools (floats that are whole numbers will do); `IGNORE` leaves a position out.

    Raises:
        ProjectError: shapes do not fit, a label is no class number, is out of range, or all of a sample is ignored.
    """
    whole = _whole(labels, metric)
    layout = _layout(outputs, whole, metric)
    if layout.task == "binary":
        whole = whole.reshape(_without_unit_axis(outputs).shape)
    top = layout.classes if layout.task == "multiclass" else 2
    bad = np.argwhere(((whole < 0) & (whole != IGNORE)) | (whole >= top))
    if len(bad):
        position = ", ".join(str(int(i)) for i in bad[0])
        raise ProjectError(
            f"label {int(whole[tuple(bad[0])])} of sample {int(bad[0][0])} (position {position}) is not one of 0..{top - 1}",
            f"the outputs have shape {outputs.shape}",
            f"Fix the dataset; write {IGNORE} where a position shall be ignored.",
        )
    empty = np.flatnonzero((whole == IGNORE).reshape(len(whole), -1).all(axis=1))
    if len(empty):
        raise ProjectError(f"every label of sample {empty[0]} is {IGNORE}", "nothing of it can be scored", "Leave it out of the dataset.")
    return layout, whole


def _whole(labels: Array, metric: str) -> Array:
    if labels.dtype == np.bool_ or np.issubdtype(labels.dtype, np.integer):
        return labels.astype(np.int64)
    if not np.issubdtype(labels.dtype, np.floating):
        raise ProjectError(f"metric {metric!r} needs class numbers as labels, not {labels.dtype}", "", "Give int64 labels.")
    bad = np.argwhere(~np.isfinite(labels) | (labels != np.round(labels)))
    if len(bad):
        position, value = ", ".join(str(int(i)) for i in bad[0]), labels[tuple(bad[0])]
        raise ProjectError(f"the label at position {position} is {value}", f"metric {metric!r} needs class numbers", "Give int64 labels.")
    return labels.astype(np.int64)


def _layout(outputs: Array, labels: Array, metric: str) -> Layout:
    if len(outputs) != len(labels):
        raise ProjectError(f"{len(outputs)} outputs for {len(labels)} labels", "", "Every sample needs one label.")
    logits = bool(outputs.size) and not bool(np.all((outputs >= 0) & (outputs <= 1)))
    if outputs.ndim >= 2 and outputs.shape[1] > 1:
        if labels.shape == (outputs.shape[0], *outputs.shape[2:]):
            return Layout("multiclass", outputs.shape[1], 1, logits)
        if outputs.ndim > 2 and outputs.shape[-1] > 1 and labels.shape == outputs.shape[:-1]:
            return Layout("multiclass", outputs.shape[-1], outputs.ndim - 1, logits)
        if labels.shape == outputs.shape and outputs.ndim == 2:
            return Layout("multilabel", outputs.shape[1], 1, logits)
    if _without_unit_axis(outputs).shape == _without_unit_axis(labels).shape:
        return Layout("binary", 2, 1, logits)
    raise ProjectError(
        f"metric {metric!r}: outputs of shape {outputs.shape} do not fit labels of shape {labels.shape}",
        "classification outputs are (n, classes, ...), their labels (n, ...)",
        "Change the dataset's labels, or write a metric of your own: `metric: module:callable`.",
    )


def _without_unit_axis(array: Array) -> Array:
    return array.reshape(len(array), *array.shape[2:]) if array.ndim >= 2 and array.shape[1] == 1 else array
