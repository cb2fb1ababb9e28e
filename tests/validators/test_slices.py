"""An average cannot hide a ruined class, and many classes raise no more false alarms than one."""

from __future__ import annotations

import numpy as np
import pytest

from edgepress.targets.errors import MeasurementError
from edgepress.validators.gates import Gate, judge
from edgepress.validators.metrics import metric_of
from edgepress.validators.slices import FEWEST, compare_slices, worst

CLASSES = 10


def outputs(labels: np.ndarray, wrong: np.ndarray) -> dict[str, np.ndarray]:
    """Logits that name the label, or the class after it where `wrong`."""
    return {"logits": np.eye(CLASSES, dtype=np.float32)[(labels + wrong) % CLASSES]}


def verdict(labels: np.ndarray, before: np.ndarray, after: np.ndarray, limit: float = 3.0) -> tuple[str, str]:
    groups = {"class": [str(label) for label in labels]}
    found = compare_slices(metric_of("accuracy"), outputs(labels, before), outputs(labels, after), labels, groups)
    judged = judge([Gate("slice_drop", limit, "pp")], [worst(found)])[0]
    return judged.verdict, judged.observed


def test_a_ruined_class_fails_though_the_average_holds() -> None:
    labels = np.arange(5000) % CLASSES
    none = np.zeros(5000, dtype=int)
    ruined = ((labels == 7) & (np.arange(5000) < 600)).astype(int)  # 60 of the 500 of class 7: 1.2 pp on the average
    word, observed = verdict(labels, none, ruined)
    assert word == "fail" and "class=7, the worst of 10 slices" in observed and observed.startswith("12.00 pp")


def test_equal_models_pass_where_every_class_has_enough_samples() -> None:
    labels = np.arange(20_000) % CLASSES
    none = np.zeros(20_000, dtype=int)
    assert verdict(labels, none, none)[0] == "pass"


def test_small_groups_are_listed_and_not_judged() -> None:
    labels = np.array([0] * 400 + [1] * (FEWEST - 1))
    none, ruined = np.zeros(len(labels), dtype=int), (labels == 1).astype(int)
    found = compare_slices(
        metric_of("accuracy"), outputs(labels, none), outputs(labels, ruined), labels, {"class": [str(x) for x in labels]}
    )
    assert [(part.group, part.judged, part.comparison.drop) for part in found] == [("0", True, 0.0), ("1", False, 100.0)]
    assert worst(found).how.startswith("class=0")
    tiny = judge([Gate("slice_drop", 3.0, "pp")], [worst(found[1:])])[0]
    assert tiny.verdict == "undecided" and tiny.next_step is not None and "merge slices" in tiny.next_step


def test_groups_are_ordered_by_number_then_by_name() -> None:
    names = ["10", "b", "9", "a"] * FEWEST
    labels = np.zeros(len(names), dtype=int)
    same = outputs(labels, labels)
    found = compare_slices(metric_of("accuracy"), same, same, labels, {"kind": names})
    assert [part.group for part in found] == ["9", "10", "a", "b"]


def undefined_where_all_labels_are_equal(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.full(len(labels), np.nan if np.ptp(labels) == 0 else 1.0)


def test_a_slice_without_a_metric_is_named() -> None:
    labels = np.array([0, 1] * 50 + [0] * 50)
    groups, scores = {"kind": ["both"] * 100 + ["one"] * 50}, {"score": np.ones(150, dtype=np.float32)}
    with pytest.raises(MeasurementError, match="slice kind=one of 50 samples"):
        compare_slices(metric_of(undefined_where_all_labels_are_equal), scores, scores, labels, groups)


@pytest.mark.parametrize("groups", [1, 20])
def test_false_alarms_stay_those_of_one_gate_and_a_bad_model_does_not_pass(groups: int) -> None:
    """Every group's true drop is the limit."""
    draw, samples, limit = np.random.default_rng(0), 400, 0.05
    failed = passed = 0
    for _ in range(300):
        labels, names = np.zeros(groups * samples, dtype=int), np.repeat(np.arange(groups), samples)
        before = (draw.random(groups * samples) < 0.1).astype(int)
        after = np.maximum(before, (draw.random(groups * samples) < limit / 0.9).astype(int))
        by = {"group": [str(name) for name in names]}
        found = compare_slices(metric_of("accuracy"), outputs(labels, before), outputs(labels, after), labels, by)
        word = judge([Gate("slice_drop", 100 * limit, "pp")], [worst(found)])[0].verdict
        failed, passed = failed + (word == "fail"), passed + (word == "pass")
    assert failed / 300 <= 0.025 + 3 * (0.025 * 0.975 / 300) ** 0.5
    assert passed / 300 <= 0.05
