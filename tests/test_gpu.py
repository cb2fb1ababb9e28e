"""Trainings on a GPU: what is exported, judged and stored on the CPU learns there. All other tests see no GPU (conftest.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.project import digits, report_of, started

pytestmark = pytest.mark.skipif(not list(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has no NVIDIA GPU")
SEEN = {"CUDA_VISIBLE_DEVICES": "0"}
TRAIN: dict[str, Any] = {"epochs": 2, "lr": 0.01}
STEPS: dict[str, list[dict[str, Any]]] = {
    "prune and distil": [
        {"prune": {"speedup": 1.3, "finetune": {**TRAIN, "loss": "kd", "precision": "bf16", "ema": 0.9, "augment": ["crop1"]}}},
        {"distill": {**TRAIN, "loss": {"kd": 1.0, "hint": 0.1}, "precision": "fp16", "activation_checkpointing": True}},
    ],
    "sparsity": [{"prune": {"speedup": 1.3, "sparsity": {"epochs": 1, "strength": 1e-4}, "finetune": TRAIN}}],
    "mask": [{"prune": {"mask": "2:4", "finetune": {**TRAIN, "optimizer": "adamw"}}}],
    "qat": [{"quantize": {"precision": "int8", "method": "qat", "scheme": "static", "qat": {"epochs": 1, "loss": "kd"}}}],
}


@pytest.mark.parametrize("steps", STEPS)
def test_every_kind_of_training_runs_on_it(steps: str, tmp_path: Path) -> None:
    recipe = digits(tmp_path, targets=["onnxruntime"], gates={"accuracy_drop": {"max": "90pp"}})
    content = yaml.safe_load(recipe.read_text())
    content["compress"] = STEPS[steps]
    recipe.write_text(yaml.safe_dump(content))
    done = started("run", recipe, "--out", tmp_path / "run", **SEEN)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    trained = [stage["report"] for stage in report_of(tmp_path / "run")["stages"] if "history" in stage.get("report", {})]
    assert all(any(remark.startswith("trained on NVIDIA") for remark in report["remarks"]) for report in trained)
    assert trained or steps == "qat"
    if steps == "mask":
        weights = load_file(tmp_path / "run" / "compressed" / "model.safetensors").values()
        assert (
            sum(int((weight == 0).sum()) for weight in weights if weight.ndim > 1) > 4000
        )  # of 12,000, not all with a multiple of 4 inputs


def test_exported_graphs_learn_in_every_precision_alike_under_a_seed_and_come_back(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "tests.gpu_training", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env={**os.environ, **SEEN})
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for result in results.values():
        assert result["best"] > result["start"] + 0.2
        assert result["devices"] == ["cpu"]
    assert results["fp32"]["digest"] == results["again"]["digest"] == results["cut"]["digest"]
