"""`precision: int4-weights` through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import digits, edgepress, report_of

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_a_recipe_line_ships_4_bit_weights_and_says_which_layers_have_another_group(tmp_path: Path) -> None:
    quantize = {"precision": "int4-weights", "method": "gptq", "group": 128}
    recipe = digits(tmp_path / "project", ["onnxruntime"], compress=[{"quantize": quantize}], gates={"accuracy_drop": {"max": "5pp"}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    (target,) = report_of(tmp_path / "run")["targets"]
    assert target["scheme"]["label"] == "int4-weights weights"
    assert "rounded by gptq in groups of 128; 128 does not divide the inputs of 1: classifier has 16" in target["tried"][0]["why"]
    assert target["parity"]["against"] == "quantized PyTorch model" and target["parity"]["sqnr_db"] > 30
    assert any(op["op"] == "aten.conv2d" and "no kernel" in op["reason"] for op in target["float_ops"])
    verified = edgepress("verify", tmp_path / "run" / "bundle")
    assert verified.returncode == 0, verified.stderr + verified.stdout
