"""`precision: fp8` through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import digits, edgepress, report_of

pytest.importorskip("tensorrt_rtx_bindings")


@pytest.mark.slow
def test_a_recipe_line_gives_an_engine_that_multiplies_in_floats_of_8_bits(tmp_path: Path) -> None:
    target = {"tensorrt": {"unmeasured": {"latency": "accept"}}}
    recipe = digits(tmp_path / "project", [target], compress=[{"quantize": {"precision": "fp8"}}], gates={"accuracy_drop": {"max": "5pp"}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    (made,) = report_of(tmp_path / "run")["targets"]
    assert made["precision"] == "fp8" and made["scheme"] == {"label": "fp8", "kind": "fp8"}
    assert made["kernels"]["fp8"] >= 1 and made["kernels"]["int8"] == 0 and made["facts"]["compute_capabilities"] == ["8.9"]
    assert made["parity"]["against"] == "quantized PyTorch model" and made["parity"]["sqnr_db"] > 40
    explained = edgepress("explain", tmp_path / "run", "tensorrt")
    assert explained.returncode == 0 and "1 fp8" in explained.stdout, explained.stdout + explained.stderr


@pytest.mark.parametrize(
    ("quantize", "said"),
    [
        ({"precision": "fp8", "method": "qat"}, "method 'qat' trains for calibrated integers, and precision fp8 has none"),
        ({"precision": "fp8", "algorithms": ["gptq"]}, "'gptq' refines integers with calibrated ranges, and no target has them"),
    ],
)
def test_what_is_for_integers_is_refused(tmp_path: Path, quantize: dict[str, object], said: str) -> None:
    done = edgepress("run", digits(tmp_path, ["tensorrt"], compress=[{"quantize": quantize}]))
    assert done.returncode == 2 and said in done.stderr


def test_a_runtime_without_it_is_refused_with_what_it_has(tmp_path: Path) -> None:
    done = edgepress("run", digits(tmp_path, ["onnxruntime"], compress=[{"quantize": {"precision": "fp8"}}]))
    assert done.returncode == 2 and "target 'onnxruntime' has no fp8" in done.stderr and "Its runtime has fp32, fp16" in done.stderr
