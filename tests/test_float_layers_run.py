"""Layers kept in float, and a precision for every layer, through the command line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project import SPOILT, digits, edgepress, report_of, spoil

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits project with one spoilt layer."""
    return spoil(digits(tmp_path_factory.mktemp("spoilt"), ["onnxruntime"], gates={"accuracy_drop": {"max": "1.5pp"}}))


def run(recipe: Path, out: Path, **quantize: Any) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the report's only target."""
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"compress": [{"quantize": quantize}]}))
    done = edgepress("run", recipe, "--out", out)
    (target,) = report_of(out)["targets"]
    return done.returncode, " ".join(done.stdout.split()), target


def test_fallback_keeps_the_one_spoilt_layer_in_float_and_meets_the_goal(recipe: Path, tmp_path: Path) -> None:
    code, printed, target = run(recipe, tmp_path / "run", precision="int8", max_drop="1pp", fallback=True)
    assert code == 0, printed
    assert target["fallback"]["layers"] == [SPOILT] and target["fallback"]["met"] and target["fallback"]["drop"] <= 1
    assert [item["layers"] for item in target["fallback"]["tried"]] == [0, 1]
    assert target["scheme"]["label"] == "int8 static, 1 float" and target["kernels"]["float_share_of_macs"] == pytest.approx(0.5, abs=0.2)
    sentence = f"onnxruntime: 1 layer in float ({SPOILT})"
    assert sentence in printed and sentence in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_without_fallback_the_same_recipe_leaves_integer_activations(recipe: Path, tmp_path: Path) -> None:
    _, _, target = run(recipe, tmp_path / "run", precision="int8", max_drop="1pp")
    assert target["fallback"] is None and target["scheme"]["kind"] not in ("static", "static-matmul")


@pytest.mark.slow
def test_integers_are_refined_before_all_arithmetic_goes_back_to_float(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    other = recipe.with_name("openvino.yaml")
    other.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"targets": ["openvino"]}))
    _, printed, target = run(other, tmp_path / "run", precision="int8", max_drop="1pp")
    tried = [(item["scheme"], "refined by gptq" in item["why"]) for item in target["tried"]]
    assert tried == [("int8 static", False), ("int8 static-matmul", False), ("int8 static", True), ("int8 weights", False)], printed


@pytest.mark.slow
def test_a_budget_of_drop_and_one_of_bytes_choose_a_precision_for_every_layer(recipe: Path, tmp_path: Path) -> None:
    code, printed, target = run(recipe, tmp_path / "drop", precision="mixed", budget={"accuracy_drop": "1pp"}, int4=False)
    assert code == 0, printed
    assert {layer["layer"] for layer in target["mixed"]["layers"] if layer["bits"] == 32} == {SPOILT}
    code, printed, larger = run(recipe, tmp_path / "size", precision="mixed", budget={"size": "0.8x"}, int4=False)
    assert code == 0, printed
    kept = [layer["layer"] for layer in larger["mixed"]["layers"] if layer["bits"] == 32]
    assert SPOILT in kept and len(kept) > 1 and larger["artifact"]["size_bytes"] > target["artifact"]["size_bytes"]
    page = (tmp_path / "size" / "report.html").read_text()
    assert "Precision of every layer, onnxruntime" in page and f"{SPOILT}: float, 32 bits" in page
    assert f"{len(kept)} of {len(larger['mixed']['layers'])} layers in float" in printed


@pytest.mark.slow
def test_a_budget_of_bytes_that_no_assignment_reaches_ends_with_2_and_names_the_nearest(recipe: Path, tmp_path: Path) -> None:
    code, printed, target = run(recipe, tmp_path / "run", precision="mixed", scheme="static", budget={"size": "0.1x"})
    assert code == 2 and target["status"] == "failed"
    assert "cannot be as small as 0.1x" in printed and "The nearest budget is {size: 0.2" in printed
    assert "with every layer in the fewest bits that it can have" in printed
    nearest = re.findall(r"\{size: (0\.\d+x)\}", printed)[-1]
    _, printed, target = run(recipe, tmp_path / "nearest", precision="mixed", scheme="static", budget={"size": nearest})
    bits = {layer["layer"]: layer["bits"] for layer in target["mixed"]["layers"]}
    counts = Counter(bits.values())
    assert counts[4] > 0 and counts[2] > 0, counts
    assert f", {counts[4]} with 4-bit weights and {counts[2]} with 2-bit weights, within size" in printed
    assert f"{SPOILT}: {bits[SPOILT]} bits" in (tmp_path / "nearest" / "report.html").read_text()


@pytest.mark.slow
def test_a_budget_of_latency_is_measured_in_the_runtime_and_refused_with_the_nearest(recipe: Path, tmp_path: Path) -> None:
    code, printed, target = run(recipe, tmp_path / "slow", precision="mixed", budget={"latency": "50x"})
    assert code == 0 and "within latency 50x of the float original's" in printed, printed
    assert all(isinstance(layer["float_latency"], float) for layer in target["mixed"]["layers"])
    assert "what float takes longer there than integers" in (tmp_path / "slow" / "report.html").read_text()
    code, printed, target = run(recipe, tmp_path / "fast", precision="mixed", budget={"latency": "0.001x"})
    assert code == 2 and target["status"] == "failed"
    assert "cannot take as little as 0.001x of the float original's time" in printed and "The nearest budget is {latency:" in printed


def test_a_plan_of_a_new_recipe_names_the_steps_and_runs_none(tmp_path: Path) -> None:
    quantize = {"precision": "mixed", "budget": {"accuracy_drop": "1pp"}}
    done = edgepress("plan", digits(tmp_path, ["onnxruntime"], compress=[{"quantize": quantize}]))
    assert done.returncode == 0 and "sensitivity onnxruntime static" in done.stdout
