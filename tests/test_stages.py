"""Compression steps through the command line: what pruning, distillation and training leave in the report, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from edgepress.bundle.digest import digest
from edgepress.compress.compressed import load
from tests.project import digits, edgepress, report_of

SCHEMA = Path(__file__).parent.parent / "edgepress" / "report" / "schema" / "report.v1.json"
GATES = {"accuracy_drop": {"max": "5pp"}}
TRAIN = {"epochs": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all recipes, so that its data, model and reference are stored once."""
    return digits(tmp_path_factory.mktemp("stages") / "project", gates=GATES).parent


def recipe_of(folder: Path, name: str, *steps: dict[str, Any]) -> Path:
    content = yaml.safe_load((folder / "edgepress.yaml").read_text())
    content["compress"] = [*steps] if steps and "quantize" in steps[-1] else [*steps, {"quantize": {"precision": "int8"}}]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def pruned(folder: Path) -> Path:
    """A finished run that prunes to 1.5x, fine-tunes and distils."""
    prune = {"prune": {"speedup": 1.5, "multiple": 2, "finetune": TRAIN}}
    recipe = recipe_of(folder, "pruned", prune, {"distill": {**TRAIN, "loss": {"kd": 1.0, "hint": 0.1}}})
    done = edgepress("run", recipe, "--out", folder / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_every_stage_is_in_the_report_with_what_it_cost(pruned: Path) -> None:
    report = report_of(pruned / "run")
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    stages = report["stages"]
    assert [stage["name"] for stage in stages[:4]] == ["original", "prune 1.50x MACs", "finetune", "distill kd + hint"]
    original, prune, finetune, distill = stages[:4]
    assert original["macs"] / prune["macs"] >= 1.5 and prune["parameters"] < original["parameters"]
    assert finetune["macs"] == distill["macs"] == prune["macs"]
    for stage in (prune, finetune, distill):
        assert stage["interval"][0] <= stage["drop"] <= stage["interval"][1]
    assert prune["report"]["largest_error"] < 1e-5
    assert any(family["kept"] < family["units"] and family["kept"] % 2 == 0 for family in prune["report"]["families"])
    assert len(finetune["report"]["history"]) == 2 and finetune["report"]["stopped"] == "finished"
    assert 0 <= finetune["timing"]["waiting_share"] <= 1 and len(finetune["timing"]["epochs"]) == 2


def test_the_artifact_is_the_smaller_model_and_is_judged_against_the_original(pruned: Path) -> None:
    report = report_of(pruned / "run")
    target = report["targets"][0]
    assert report["reference"]["macs"] == report["stages"][0]["macs"]
    assert target["metric"]["drop"] == pytest.approx(100 * (report["reference"]["metric"]["value"] - target["metric"]["value"]))
    assert target["parity"]["argmax_agreement"] > 0.97


def test_the_smaller_model_is_handed_out_for_pytorch(pruned: Path) -> None:
    compressed = report_of(pruned / "run")["compressed"]
    path = pruned / "run" / compressed["path"]
    assert digest(path) == compressed["sha256"] and compressed["route"] in ("class", "graph")
    with torch.no_grad():
        assert load(path, pruned)(torch.zeros(3, 1, 16, 16)).shape == (3, 10)


def test_an_unchanged_run_trains_nothing_again(pruned: Path) -> None:
    again = edgepress("run", pruned / "pruned.yaml", "--out", pruned / "again")
    assert again.returncode == 0 and "done" not in again.stderr, again.stderr
    assert digest(pruned / "again" / "bundle") == digest(pruned / "run" / "bundle")
    assert "prune 1.50x MACs" in again.stdout and "distill kd + hint" in again.stdout
    page = (pruned / "run" / "report.html").read_text()
    assert "what was done" in page and "samples kept apart" in page


@pytest.mark.slow
def test_a_training_killed_with_9_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "killed", {"distill": {"epochs": 60, "lr": 0.01}})
    store = Path(os.environ["EDGEPRESS_STORE"])
    command = [sys.executable, "-m", "edgepress", "run", str(recipe), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(store.glob("scratch/*/training-*/checkpoint*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the training was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(store.glob("scratch/*/training-*/checkpoint*"))
    cut = edgepress("run", recipe, "--out", tmp_path / "cut")
    assert cut.returncode == 0, cut.stderr
    assert not list(store.glob("scratch/*/training-*"))
    whole = edgepress("run", recipe, "--out", tmp_path / "whole", "--fresh")
    assert whole.returncode == 0, whole.stderr
    one, other = (report_of(tmp_path / name) for name in ("cut", "whole"))
    assert one["targets"][0]["artifact"]["sha256"] == other["targets"][0]["artifact"]["sha256"]
    assert one["stages"][1]["report"] == other["stages"][1]["report"]


@pytest.mark.slow
def test_quantization_aware_training_is_kept_where_it_is_better_and_said_where_not(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "qat", {"quantize": {"method": "qat", "qat": {"epochs": 1}}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    plain, trained = report_of(tmp_path / "run")["targets"][0]["tried"][:2]
    assert "quantization-aware training" in trained["why"] and "quantization-aware" not in plain["why"]
    word = "; better than" if trained["drop_on_selection"] < plain["drop_on_selection"] else "; no better than"
    assert word in trained["why"]


@pytest.mark.slow
def test_a_net_without_classes_is_trained_in_integers_by_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n\n"
        "def net():\n    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))\n\n"
        "def data():\n    x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))\n"
        "    return TensorDataset(x, x.mean(1, keepdim=True))\n\n"
        "def error(outputs, labels):\n    return ((outputs - labels) ** 2).flatten(1).mean(1)\n"
    )
    model = {"factory": "net:net", "checkpoint": "net.safetensors"}
    data = {"train": "net:data", "validation": "net:data", "calibration": {"samples": 64, "selection": 64}}
    content = {"project": "regression", "model": model, "data": data, "metric": "net:error", "targets": ["onnxruntime"]}
    content["compress"] = [{"quantize": {"method": "qat", "scheme": "static", "qat": {"epochs": 1}}}]
    recipe = tmp_path / "edgepress.yaml"
    recipe.write_text(yaml.safe_dump(content | {"gates": {"size": {"max": "1MB"}}}))
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).state_dict(), tmp_path / "net.safetensors")
    done = edgepress("run", recipe, "--out", tmp_path / "run", EDGEPRESS_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quantization-aware training" in report_of(tmp_path / "run")["targets"][0]["tried"][-1]["why"]


@pytest.mark.slow
def test_a_training_in_integers_that_fails_is_the_targets_error_and_not_another_scheme(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "qat-fails", {"quantize": {"method": "qat", "qat": {"epochs": 1, "accumulate": 10_000}}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    target = report_of(tmp_path / "run")["targets"][0]
    assert done.returncode == 2 and target["status"] == "failed"
    assert "quantization-aware training in int8 static: accumulate is 10000" in str(target["error"])


@pytest.mark.slow
def test_masks_keep_their_zeros_through_fine_tuning(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "masks", {"prune": {"mask": "50%", "finetune": TRAIN}})
    store = Path(os.environ["EDGEPRESS_STORE"])
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    stage = report_of(tmp_path / "run")["stages"][1]
    assert stage["macs"] == report_of(tmp_path / "run")["stages"][0]["macs"]
    assert any("gets no faster" in line for line in stage["report"]["remarks"])
    masked = [path.parent for path in store.glob("objects/*/files/masks.safetensors")]
    assert len(masked) == 2
    for folder in masked:
        weights = torch.export.load(folder / "model.pt2").state_dict
        zeros = sum(int((value == 0).sum()) for name, value in weights.items() if value.ndim > 1)
        assert zeros >= 0.5 * sum(value.numel() for value in weights.values() if value.ndim > 1)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"prune": {"speedup": 500.0}}, "speedup 500 cannot be reached"),
        ({"prune": {"speedup": 2.0, "ignore": ["layer9*"]}}, "no layer matches 'layer9*'"),
        ({"prune": {"parameters": "0.5x", "protect": ["*"]}}, "there is nothing to prune"),
        ({"distill": {"epochs": 1, "optimizer": "sgdd"}}, "optimizer is 'sgdd'"),
        ({"distill": {"epochs": 1, "augment": ["flop"]}}, "flop"),
        ({"distill": {"epochs": 1, "teacher": "missing.safetensors"}}, "missing.safetensors"),
        ({"distill": {"epochs": 1, "loss": "hint", "layers": [["nothing", "nothing"]]}}, "'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_two(step: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "wrong", step)
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 2, done.stdout
    last = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(last) == 1 and message in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_teacher_with_other_outputs_is_named_with_its_shape(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "teacher", {"distill": {"epochs": 1, "teacher": "other.pt2"}})
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 11)).eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    torch.export.save(torch.export.export(other, (torch.zeros(2, 1, 16, 16),), dynamic_shapes=(batch,)), recipe.parent / "other.pt2")
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 2 and "11" in done.stderr and "10" in done.stderr, done.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, "two", {"distill": {**TRAIN, "devices": 2, "strategy": "ddp"}})
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    stage = report_of(tmp_path / "run")["stages"][1]
    assert stage["report"]["stopped"] == "finished" and len(stage["report"]["history"]) == 2
