"""The metric of every group of samples, so that an average cannot hide a ruined class.

The gate `slice_drop` is about the largest drop of any judged group. Its interval is one of that largest true drop: the upper bound is the
largest of the groups' own upper bounds (some group's true drop is the largest, and its bound holds), the lower bound the largest of their
lower bounds at the confidence 1 - (1 - confidence) / k of k groups (Bonferroni: the chance that any of them lies over its group's true
drop stays that of one). So many groups neither pass a ruined one nor raise more false alarms than one gate does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Evidence
from edgepress.validators.accuracy import Comparison, compare
from edgepress.validators.intervals import Interval
from edgepress.validators.metrics import Array, Metric

#: A smaller group's interval says nothing: it is listed and not judged.
FEWEST = 30


@dataclass(frozen=True)
class Slice:
    """One group of samples.

    Attributes:
        by: what the samples were grouped by.
        group: its name.
        comparison: candidate and reference on its samples.
        low: lower bound of its drop at the confidence that all groups together need.
        judged: it has `FEWEST` samples or more.
    """

    by: str
    group: str
    comparison: Comparison
    low: float
    judged: bool

    @property
    def name(self) -> str:
        """`class=cat`."""
        return f"{self.by}={self.group}"

    def to_json(self) -> dict[str, Any]:
        """The entry of a target's `slices` in report.json."""
        found = self.comparison
        facts = {"value": found.value, "reference": found.reference, "drop": found.drop, "interval": list(found.interval)}
        return {"by": self.by, "group": self.group, "samples": found.samples, **facts, "judged": self.judged}


def compare_slices(
    metric: Metric,
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    labels: Array,
    groups: Mapping[str, Sequence[str]],
    confidence: float = 0.95,
) -> list[Slice]:
    """Compare two models on every group of samples.

    Args:
        metric: of the recipe, not yet bound: every group is a data set of its own.
        reference, candidate: outputs by name, dimension 0 is the batch, in the order of `labels`.
        labels: the batch in dimension 0.
        groups: by what -> the group of every sample.
        confidence: two-sided, of the intervals and of `worst`.

    Returns:
        The groups in the order of `groups`, each grouping sorted by name, numbers by value.

    Raises:
        MeasurementError: the metric has no value on a group, which is named.
    """
    parts = [(by, group, np.asarray(names) == group) for by, names in groups.items() for group in sorted(set(names), key=_order)]
    count = sum(int(part.sum()) >= FEWEST for _, _, part in parts)
    found = []
    for by, group, part in parts:
        before, after = ({name: value[part] for name, value in outputs.items()} for outputs in (reference, candidate))
        try:
            own = compare(metric, before, after, labels[part], confidence)
            together = compare(metric, before, after, labels[part], 1 - (1 - confidence) / max(count, 1))
        except MeasurementError as error:
            raise MeasurementError(f"slice {by}={group} of {int(part.sum())} samples has no metric", str(error)) from error
        found.append(Slice(by, group, own, together.interval[0], own.samples >= FEWEST))
    return found


def worst(slices: Sequence[Slice]) -> Evidence:
    """The evidence of the gate `slice_drop`."""
    judged = [part for part in slices if part.judged]
    if not judged:
        largest = max((part.comparison.samples for part in slices), default=0)
        why = f"the largest slice has {largest} samples, fewer than {FEWEST}"
        return Evidence("slice_drop", None, slices[0].comparison.unit if slices else "pp", unmeasurable=why)
    ruined = max(judged, key=lambda part: part.comparison.drop)
    interval: Interval = (max(part.low for part in judged), max(part.comparison.interval[1] for part in judged))
    found, how = ruined.comparison, f"{ruined.name}, the worst of {len(judged)} slices"
    return Evidence("slice_drop", found.drop, found.unit, interval, found.samples, how)


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers by value, before words."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
