"""The distance to this machine's peak: its arithmetic, what it refuses to call a peak, and how it is said."""

from __future__ import annotations

import io
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgepress.config import TargetPlan
from edgepress.peak_distance import peak_distance
from edgepress.report.outcome import print_run
from edgepress.report.peak import distance_text
from edgepress.results import TargetRun
from edgepress.step import Result
from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Target
from edgepress.validators.peak import Peak, measure_peak
from edgepress.validators.runtimes import RUNTIMES
from tests.report_sample import report, target

PEAK = Peak(80e9, 40e9, "by hand")


def entry(**more: Any) -> dict[str, Any]:
    kernels = {"int8": 4, "fp16": 0, "fp32": 1, "unknown": 0}
    return {"latency_ms": {"p50": 3.0, "batch": 1}, "integer_share_of_macs": 1.0, "kernels": kernels, **more}


def distance(entry: dict[str, Any], macs: int = 80_000_000, **more: Any) -> dict[str, Any] | None:
    plan = TargetPlan(Target("onnxruntime", "onnxruntime", "CPU", "int8"), (), frozenset())
    peak = Result(PEAK.to_json(), Path(), "", True, 0.0)
    return peak_distance(TargetRun(plan, **{"peak": peak, **more}), entry, macs)


def test_every_multiply_accumulate_takes_the_time_of_its_arithmetic() -> None:
    assert PEAK.shortest_ms(80e6, 1.0) == pytest.approx(1.0)
    assert PEAK.shortest_ms(80e6, 0.0) == pytest.approx(2.0)
    assert PEAK.shortest_ms(80e6, 0.75) == pytest.approx(1.25)


@pytest.mark.parametrize(("share", "batch", "value"), [(1.0, 1, 3.0), (0.0, 1, 1.5), (0.5, 1, 2.0), (1.0, 3, 1.0)])
def test_the_distance_is_the_median_over_that_time(share: float, batch: int, value: float) -> None:
    found = distance(entry(integer_share_of_macs=share, latency_ms={"p50": 3.0, "batch": batch}))
    assert found is not None and found["value"] == pytest.approx(value) and found["why"] is None


def test_a_float_model_whose_shapes_are_hidden_is_held_against_the_float_peak() -> None:
    kernels = {"int8": 0, "fp16": 0, "fp32": 5, "unknown": 0}
    found = distance(entry(integer_share_of_macs=None, kernels=kernels))
    assert found is not None and found["value"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("more", "macs", "run", "why"),
    [
        ({"integer_share_of_macs": None}, 1, {}, "does not say"),
        ({"integer_share_of_macs": 0.5, "kernels": {"int8": 1, "fp16": 1, "fp32": 0, "unknown": 0}}, 1, {}, "half precision"),
        ({}, 0, {}, "no multiply-accumulates"),
        ({}, 1, {"peak": None, "peak_error": "the engine runs on a GPU"}, "GPU"),
    ],
)
def test_what_has_no_distance_says_why(more: dict[str, Any], macs: int, run: dict[str, Any], why: str) -> None:
    found = distance(entry(**more), macs, **run)
    assert found is not None and found["value"] is None and why in found["why"]
    assert "not measured" in distance_text(found) and why in distance_text(found)


def test_without_a_latency_there_is_none() -> None:
    assert distance(entry(latency_ms=None)) is None


@pytest.mark.parametrize("name", ["tensorrt", "coreml"])
def test_a_runtime_that_leaves_the_processor_is_not_held_against_it(name: str) -> None:
    assert RUNTIMES.get(name)().peak_unavailable()


def test_the_fastest_run_of_each_arithmetic_is_the_peak_and_settings_are_left_as_they_were() -> None:
    import torch

    before = torch.get_num_threads(), torch.backends.quantized.engine
    ticks = count()
    peak = measure_peak(1, seconds=0, clock=lambda: next(ticks) * 1000)  # every call takes a microsecond
    assert peak.int8_macs_per_s == peak.fp32_macs_per_s == pytest.approx(64 * 1536 * 384 / 1e-6)
    assert (torch.get_num_threads(), torch.backends.quantized.engine) == before


def test_a_kernel_that_computes_nothing_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """FBGEMM takes zero points of float32 and returns at once, with garbage."""
    import torch

    made = torch.quantize_per_channel
    monkeypatch.setattr(torch, "quantize_per_channel", lambda w, scale, zero, *rest: made(w, scale, zero.float(), *rest))
    with pytest.raises(MeasurementError, match="int8 peak"):
        measure_peak(1, seconds=0)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "1.6x off this machine's int8 peak of 79 GMAC/s"),
        (0.0, "1.6x off this machine's fp32 peak of 45 GMAC/s"),
        (0.97, "1.6x off this machine's peaks of 79 GMAC/s in int8 (97 % of the multiply-accumulates) and 45 GMAC/s in fp32"),
    ],
)
def test_the_peak_that_is_named_is_that_of_the_arithmetic(share: float, words: str) -> None:
    assert distance_text({**target("onnxruntime")["peak_distance"], "integer_share": share}) == words


def test_the_terminal_says_it_in_one_line() -> None:
    sink = io.StringIO()
    print_run(report(), Path("run"), Console(file=sink, width=2000))
    assert "onnxruntime 1.6x off this machine's int8 peak of 79 GMAC/s; tflite 1.6x off" in sink.getvalue()
