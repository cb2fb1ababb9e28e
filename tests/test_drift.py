"""`edgepress verify --inputs`: live inputs against calibration's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.bundle import inputs
from edgepress.bundle.drift import KS_LIMIT, PSI_LIMIT, compare_inputs
from edgepress.bundle.inputs import histogram, kolmogorov_smirnov, moments, population_stability, reference_statistics
from edgepress.bundle.npz import save_npz
from edgepress.bundle.verify import Asked, verify
from edgepress.targets.errors import EdgepressError, IntegrityError, MeasurementError
from tests.bundle_sample import calibration, full_run
from tests.test_verify import matching


def reference(folder: Path, **arrays: np.ndarray) -> Path:
    (folder / inputs.NAME).write_text(json.dumps(reference_statistics(arrays), allow_nan=False))
    return folder


def verdict(folder: Path, **arrays: np.ndarray) -> str:
    save_npz(folder / "live.npz", arrays)
    return compare_inputs(folder, folder / "live.npz").verdict


def images(samples: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    value = dice.normal(size=(samples, 3, 8, 8)) + dice.normal(size=(samples, 1, 1, 1))
    return (value * scale + shift).astype(np.float32)


def tokens(samples: int, seed: int, exponent: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).zipf(exponent, size=(samples, 32)).clip(0, 30_000)


def test_samples_of_the_same_data_rarely_drift_however_few_they_are(tmp_path: Path) -> None:
    reference(tmp_path, image=images(256, 0), ids=tokens(256, 0))
    for samples in (1, 4, 16, 64):
        found = [verdict(tmp_path, image=images(samples, seed), ids=tokens(samples, seed)) for seed in range(1, 41)]
        assert found.count("drift") <= 3, (samples, found)
    assert verdict(tmp_path, image=images(256, 99), ids=tokens(256, 99)) == "same"


@pytest.mark.parametrize(
    "live",
    [
        {"image": images(64, 1, shift=1.5)},
        {"image": images(64, 1, scale=3.0)},
        {"image": images(64, 1) * 0},
        {"image": np.full((64, 3, 8, 8), np.nan, np.float32)},
        {"ids": tokens(64, 1, exponent=1.1)},
        {"ids": np.full((64, 32), 29_999)},
    ],
    ids=["shifted", "scaled", "black", "not a number", "other words", "one word"],
)
def test_inputs_that_changed_drift(tmp_path: Path, live: dict[str, np.ndarray]) -> None:
    reference(tmp_path, image=images(256, 0), ids=tokens(256, 0))
    assert verdict(tmp_path, **{"image": images(64, 2), "ids": tokens(64, 2), **live}) == "drift"


def test_one_value_that_is_not_finite_is_drift_where_calibration_had_none(tmp_path: Path) -> None:
    reference(tmp_path, image=images(64, 0))
    live = images(64, 1)
    live[3, 0, 0, 0] = np.inf
    assert verdict(tmp_path, image=live) == "drift"


def test_too_few_samples_to_tell_are_undecided_and_say_so(tmp_path: Path) -> None:
    reference(tmp_path, image=images(256, 0))
    save_npz(tmp_path / "live.npz", {"image": images(1, 5, shift=1.0)})
    found = compare_inputs(tmp_path, tmp_path / "live.npz")
    assert found.verdict == "undecided" and "take more samples" in found.inputs[0].why


def test_a_constant_input_drifts_when_it_moves_at_all(tmp_path: Path) -> None:
    reference(tmp_path, mask=np.ones((32, 4), np.int64))
    assert verdict(tmp_path, mask=np.ones((8, 4), np.int64)) == "same"
    assert verdict(tmp_path, mask=np.zeros((8, 4), np.int64)) == "drift"


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64"])
def test_every_dtype_of_an_input_has_statistics(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, size=(32, 5)).astype(dtype)
    reference(tmp_path, x=values)
    assert verdict(tmp_path, x=values) == "same"


def test_the_statistics_are_those_of_numpy_and_fit_in_a_device(tmp_path: Path) -> None:
    value = images(128, 0, shift=1000.0)
    found = reference_statistics({"image": value})["inputs"]["image"]
    assert found["mean"] == pytest.approx(value.mean(dtype=np.float64), rel=1e-5)
    assert found["std"] == pytest.approx(value.std(dtype=np.float64), rel=1e-4)
    assert (found["min"], found["max"]) == (value.min(), value.max())
    assert sum(found["histogram"]["counts"]) == value.size and found["histogram"]["counts"][0] == found["histogram"]["counts"][-1] == 0
    assert len(json.dumps(found)) < 10_000


def test_statistics_have_the_same_bytes_each_time() -> None:
    first, second = (json.dumps(reference_statistics(calibration(seed=3)), sort_keys=True) for _ in range(2))
    assert first == second


def test_rare_values_of_integers_are_counted_together() -> None:
    facts = reference_statistics({"ids": np.arange(10_000).reshape(100, 100)})["inputs"]["ids"]["frequencies"]
    assert len(facts["values"]) == inputs.CAP and facts["counts"][-1] == 10_000 - inputs.CAP


counts = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(lambda values: sum(values) > 0).map(np.array)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(2, 9))
def test_distances_are_zero_between_equal_distributions_and_positive_otherwise(first: np.ndarray, times: int) -> None:
    assert float(kolmogorov_smirnov(first, first * times)) == pytest.approx(0.0, abs=1e-12)
    assert float(population_stability(first, first)) == 0.0
    moved = np.roll(first, 1)
    assert (
        float(population_stability(first, moved)) == pytest.approx(float(population_stability(moved, first)))
        and 0 <= float(kolmogorov_smirnov(first, moved)) <= 1
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40))
def test_the_distance_from_histograms_is_that_of_the_samples_at_the_edges(first: list[float], second: list[float]) -> None:
    """With an edge at every value, nothing is lost against the two-sample statistic itself."""
    stats = pytest.importorskip("scipy.stats")
    edges = np.unique(np.array(first + second))
    binned = [histogram(np.array(values)[None], edges).sum(axis=0) for values in (first, second)]
    assert float(kolmogorov_smirnov(*binned)) == pytest.approx(stats.ks_2samp(first, second).statistic)


def test_both_limits_are_the_same_shift_of_a_normal_distribution() -> None:
    """A PSI of d squared and a KS distance of 2 Phi(d / 2) - 1 for a shift of d standard deviations."""
    shift = math.sqrt(PSI_LIMIT)
    assert math.erf(shift / 2 / math.sqrt(2)) == pytest.approx(KS_LIMIT, abs=0.005)


def test_moments_of_nothing_finite_are_absent() -> None:
    assert moments(np.full((2, 2), np.nan)) == {"values": 0, "mean": None, "std": None, "min": None, "max": None, "not_finite": 4}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture": np.zeros((2, 4), np.float32)}, "lack 'image'"),
        ({"image": np.zeros((2, 5), np.float32)}, r"\(2, 5\)"),
        ({"image": np.zeros((0, 4), np.float32)}, r"\(0, 4\)"),
        ({"image": np.array([["a"] * 4])}, "<U1"),
    ],
)
def test_inputs_of_another_kind_are_refused_with_what_is_wanted(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    reference(tmp_path, **calibration())
    save_npz(tmp_path / "live.npz", arrays)
    with pytest.raises(MeasurementError, match=words) as error:
        compare_inputs(tmp_path, tmp_path / "live.npz")
    assert "image: float32 (N, 4)" in error.value.remedy


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "live.npz").write_bytes(content)
    with pytest.raises(MeasurementError, match="cannot be read") as error:
        compare_inputs(reference(tmp_path, **calibration()), tmp_path / "live.npz")
    assert "pickle" not in str(error.value)


def test_a_bundle_without_statistics_says_so(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no reference statistics"):
        compare_inputs(tmp_path, tmp_path / "live.npz")


def nowhere(entry: Any, folder: Path) -> dict[str, Any]:
    return {"usable": False, "missing": "no runtime", "install": None}


@pytest.mark.parametrize(
    ("live", "code"),
    [(calibration(64, 1), 0), ({"image": calibration(64, 1)["image"] + 3}, 1), ({"image": calibration(1, 4)["image"] * 0 + 1.2}, 3)],
)
@pytest.mark.parametrize("replayer", [matching, nowhere])
def test_drift_decides_the_exit_code_of_verify(tmp_path: Path, live: dict[str, np.ndarray], code: int, replayer: Any) -> None:
    run = full_run(tmp_path)
    save_npz(tmp_path / "live.npz", live)
    found = verify(run, replayer, Asked(inputs=tmp_path / "live.npz"))
    assert found.exit_code == code and json.dumps(found.to_json())


def test_tampered_statistics_are_damage_and_are_not_compared_with(tmp_path: Path) -> None:
    bundle = full_run(tmp_path) / "bundle"
    (bundle / inputs.NAME).write_text("{}")
    save_npz(tmp_path / "live.npz", calibration())
    found = verify(bundle, matching, Asked(inputs=tmp_path / "live.npz"))
    assert found.exit_code == 1 and found.drift is None and inputs.NAME in {item.path for item in found.damage}


def test_unreadable_inputs_are_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(EdgepressError):
        verify(full_run(tmp_path), matching, Asked(inputs=tmp_path / "none.npz"))
