from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepress.config import load, recipe
from edgepress.starter import write_starter
from edgepress.targets.errors import ConfigError, ProjectError


def names(paths: list[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def test_the_digits_example_is_a_complete_recipe_for_all_five_targets(tmp_path: Path) -> None:
    written = write_starter(tmp_path / "a" / "b", "digits")
    assert names(written) == ["README.md", "data.py", "digits.safetensors", "edgepress.yaml", "model.py", "train.py"]
    assert names(list((tmp_path / "a" / "b").iterdir())) == names(written)
    plans = recipe(load(tmp_path / "a" / "b" / "edgepress.yaml"))
    assert [plan.target.name for plan in plans] == ["onnxruntime", "openvino", "tensorrt", "coreml", "tflite"]
    assert {plan.target.precision for plan in plans} == {"int8"}
    assert {plan.target.name for plan in plans if "latency" in plan.accepted} == {"tensorrt", "coreml"}
    assert (tmp_path / "a" / "b" / "digits.safetensors").stat().st_size < 200_000


def test_existing_files_are_listed_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine")
    (tmp_path / "data.py").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"already has data\.py, model\.py: nothing was written"):
        write_starter(tmp_path, "digits")
    assert names(list(tmp_path.iterdir())) == ["data.py", "model.py"] and (tmp_path / "model.py").read_text() == "mine"


def test_other_files_do_not_matter_and_stay(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert len(write_starter(tmp_path, None)) == 3
    assert (tmp_path / ".git").is_dir()


def test_an_unknown_example_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown example 'digit'\. Did you mean 'digits'"):
        write_starter(tmp_path / "x", "digit")
    assert not (tmp_path / "x").exists()


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        write_starter(tmp_path / "x", "digits")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        write_starter(tmp_path / "a" / "b", "digits")
    assert list(tmp_path.iterdir()) == []


def test_the_template_says_what_is_still_to_be_filled_in(tmp_path: Path) -> None:
    from edgepress.compress.project import steps
    from edgepress.compress.project.model import ModelSpec, load_model

    write_starter(tmp_path)
    config = load(tmp_path / "edgepress.yaml")
    recipe(config)
    with pytest.raises(
        ProjectError, match=r"data\.py:\d+: NotImplementedError: return your validation Dataset from validation\(\) in data\.py"
    ):
        steps.collect({**config.collect_params(), "inputs": {}}, tmp_path / "out")
    spec = ModelSpec(config.model.checkpoint, config.model.factory)
    with pytest.raises(ProjectError, match="does not exist"):
        load_model(spec, tmp_path)


def test_the_shipped_checkpoint_reaches_the_accuracy_its_readme_states(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from edgepress.compress.project import steps

    write_starter(tmp_path / "digits", "digits")
    config = load(tmp_path / "digits" / "edgepress.yaml")
    data, model, reference = (tmp_path / name for name in ("data", "model", "reference"))
    facts = steps.collect({**config.collect_params(), "inputs": {}}, data)
    assert facts["counts"] == {"validation": 900, "calibration": 256, "selection": 512}
    traced = steps.trace({**config.trace_params(), "inputs": {"data": str(data)}}, model)
    assert traced["signature"]["inputs"] == ({"name": "image", "dtype": "float32", "shape": (None, 1, 16, 16)},)
    assert 12_000 < traced["parameters"] < 14_000
    steps.reference({"metric": "accuracy", "inputs": {"data": str(data), "model": str(model)}}, reference)
    logits, labels = np.load(reference / "validation" / "output_0.npy"), np.load(data / "validation" / "labels.npy")
    assert f"{(logits.argmax(1) == labels).mean():.1%}".replace("%", " %") in (tmp_path / "digits" / "README.md").read_text()
    counts = np.bincount(labels)
    assert counts.min() >= 85 and counts.max() <= 95
