"""`quantize: {algorithms: …}` through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import digits, edgepress, report_of

pytest.importorskip("onnxruntime")
SLOW = pytest.mark.slow


@pytest.mark.parametrize("rounding", ["gptq", *(pytest.param(name, marks=SLOW) for name in ("adaround", "brecq", "lsq"))])
def test_a_recipe_line_equalizes_and_refines_what_is_shipped(tmp_path: Path, rounding: str) -> None:
    quantize = {"precision": "int8", "algorithms": ["equalize", rounding, "bias-correction"]}
    recipe = digits(tmp_path / "project", ["onnxruntime"], compress=[{"quantize": quantize}], gates={"accuracy_drop": {"max": "5pp"}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    (target,) = report_of(tmp_path / "run")["targets"]
    assert target["scheme"]["label"] == "int8 static" and f"{rounding}, bias-correction" in target["tried"][0]["why"]
    assert target["parity"]["against"] == "quantized PyTorch model" and target["parity"]["sqnr_db"] > 30
    again = edgepress("run", recipe, "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr + again.stdout


def test_an_unknown_algorithm_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    recipe = digits(tmp_path, ["onnxruntime"], compress=[{"quantize": {"algorithms": ["equalise"]}}])
    done = edgepress("run", recipe)
    assert done.returncode == 2 and "'equalise' is not known" in done.stderr and "Did you mean 'equalize'?" in done.stderr
    assert "equalize, lsq, adaround, gptq, brecq, bias-correction" in done.stderr


@pytest.mark.parametrize("where", [{"precision": "int8-weights"}, {"scheme": "dynamic"}])
def test_an_algorithm_that_would_have_nothing_to_refine_is_refused(tmp_path: Path, where: dict[str, str]) -> None:
    recipe = digits(tmp_path, ["onnxruntime"], compress=[{"quantize": {"algorithms": ["bias-correction"], **where}}])
    done = edgepress("run", recipe)
    assert done.returncode == 2 and "'bias-correction' refines integers with calibrated ranges" in done.stderr
