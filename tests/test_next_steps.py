"""What to do about a gate that did not pass names its target, and fits it."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from edgepress.judgement import conclude
from edgepress.validators.gate_text import FAILED
from tests.report_sample import gate, report, target


def step(name: str, **fields: Any) -> str:
    """The next step of a failed gate of the target `tflite:io8`."""
    failed = gate(name, "at most 1", "2", "fail", next_step=FAILED[name])
    made = conclude(report(target("tflite:io8", gates=[failed], **fields)), (), date(2026, 3, 4))
    assert conclude(made, (), date(2026, 3, 4)) == made  # judged again it stays
    return str(made["targets"][0]["gates"][0]["next_step"])


@pytest.mark.parametrize("name", ["accuracy_drop", "latency_ratio", "peak_memory"])
def test_it_names_the_target(name: str) -> None:
    assert "`edgepress explain RUN_DIR tflite:io8`" in step(name)


def test_only_where_something_runs_in_float_is_it_looked_for() -> None:
    kernels, look = target("x")["kernels"], "which ops run in float"
    integers = kernels | {"fp32": 0}
    assert look in step("latency_ratio", kernels=kernels | {"fp32": 1}, float_ops=[])
    assert look in step("latency_ratio", kernels=integers)  # the exporter left some
    assert look in step("latency_ratio", kernels=None, float_ops=[])  # the runtime does not say
    found = step("latency_ratio", kernels=integers, float_ops=[])
    assert look not in found and found.startswith("No op runs in float: prune")
