import json

import numpy as np
import pytest

from edgepress.targets.errors import MeasurementError
from edgepress.validators.parity import SQNR_CAP_DB, argmax_agreement, compare_outputs, sqnr_db


def test_known_noise_has_a_known_ratio():
    reference = {"out": np.array([[10.0, 0.0], [0.0, 10.0]])}
    candidate = {"out": np.array([[10.0, 1.0], [0.0, 9.0]])}
    found = compare_outputs(candidate, reference)
    assert found["sqnr_db"] == pytest.approx(20.0) and found["max_abs_error"] == 1.0 and found["argmax_agreement"] == 1.0


def test_equal_outputs_are_finite_json():
    outputs = {"out": np.ones((2, 3), np.float32)}
    found = json.loads(json.dumps(compare_outputs(outputs, outputs), allow_nan=False))
    assert found == {"max_abs_error": 0.0, "sqnr_db": SQNR_CAP_DB, "argmax_agreement": 1.0}


def test_noise_on_silence_is_the_lowest_ratio():
    assert sqnr_db(np.zeros(3), np.ones(3)) == -SQNR_CAP_DB


def test_all_outputs_count_and_the_first_decides_the_agreement():
    reference = {"logits": np.array([[1.0, 0.0]]), "box": np.array([[5.0]])}
    candidate = {"logits": np.array([[0.0, 1.0]]), "box": np.array([[8.0]])}
    found = compare_outputs(candidate, reference)
    assert found["max_abs_error"] == 3.0 and found["argmax_agreement"] == 0.0


def test_agreement_of_dense_and_binary_outputs():
    dense = np.zeros((1, 2, 2))
    dense[0, 1] = [1.0, -1.0]
    assert argmax_agreement(dense, -dense) == 0.0
    assert argmax_agreement(np.array([1.0, -1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0, 3.0])) == 0.75


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ({"out": np.array([[np.nan, 1.0]])}, "NaN"),
        ({"out": np.array([[np.inf, 1.0]])}, "infinite"),
        ({"out": np.array([[1.0]])}, "shape"),
        ({"other": np.array([[1.0, 1.0]])}, "other"),
    ],
)
def test_outputs_that_cannot_be_compared_are_errors(candidate, words):
    with pytest.raises(MeasurementError, match=words):
        compare_outputs(candidate, {"out": np.array([[0.0, 1.0]])})


def test_masked_logits_that_are_minus_infinity_on_both_sides_compare():
    masked = {"out": np.array([[-np.inf, 2.0]])}
    assert compare_outputs(masked, masked)["max_abs_error"] == 0.0
