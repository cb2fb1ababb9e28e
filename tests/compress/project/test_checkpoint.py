from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from edgepress.compress.project.checkpoint import fill, read_program, read_state_dict
from edgepress.compress.project.model import ModelSpec, count_macs, load_model
from edgepress.targets.errors import ProjectError

from .conftest import Write

MODEL = """
    from torch import nn

    def net(width=4):
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))

    def nothing():
        return {"a": 1}
"""


def net(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def refused(root: Path, name: str, **factory: Any) -> str:
    with pytest.raises(ProjectError) as caught:
        load_model(ModelSpec(name, factory.pop("factory", "model:net"), factory), root)
    return str(caught.value)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_state_dict_is_found_wherever_training_loops_put_it(write: Write, wrap: str, prefix: str) -> None:
    root, original = write("model.py", MODEL), net()
    state = {prefix + name: tensor for name, tensor in original.state_dict().items()}
    torch.save(state if wrap == "bare" else {wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}}, root / "net.pt")
    model = load_model(ModelSpec("net.pt", "model:net"), root)
    assert isinstance(model, nn.Module) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), original.state_dict())


def test_safetensors_and_half_precision_become_a_float32_model(write: Write) -> None:
    root, original = write("model.py", MODEL), net()
    save_file({name: t.half() if t.is_floating_point() else t for name, t in original.state_dict().items()}, root / "net.safetensors")
    model = load_model(ModelSpec("net.safetensors", "model:net"), root)
    assert isinstance(model, nn.Module)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model[0].weight, original[0].weight, atol=1e-3, rtol=1e-3)


def test_a_submodule_really_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    fill(model, {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}, Path("x.pt"))
    assert model.module.weight.sum() == 4


def test_tied_weights_are_stored_once_and_filled_twice() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    fill(model, {"a.weight": torch.full((2, 2), 3.0)}, Path("x.pt"))
    assert model["b"].weight.sum() == 12


def test_missing_files_name_what_is_there(write: Write) -> None:
    root = write("model.py", MODEL)
    save_file(net().state_dict(), root / "best.safetensors")
    message = refused(root, "net.safetensors")
    assert "net.safetensors' does not exist" in message and "Found there: best.safetensors" in message
    (root / "folder.pt").mkdir()
    assert "is a folder" in refused(root, "folder.pt")
    (root / "void.pt").touch()
    assert "'void.pt' is empty" in refused(root, "void.pt")


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.pth"])
@pytest.mark.parametrize("keep", [1, 40, 0.5, 0.97])
def test_a_truncated_file_is_called_so(write: Write, name: str, keep: float) -> None:
    root = write("model.py", MODEL)
    path = root / name
    if name.endswith("safetensors"):
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep) if keep >= 1 else int(len(content) * keep)])
    assert f"checkpoint {name!r} is truncated or corrupt (" in refused(root, name)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.pt2"])
def test_noise_is_corrupt(write: Write, name: str) -> None:
    root = write("model.py", MODEL)
    (root / name).write_bytes(bytes(range(256)) * 20)
    assert "is truncated or corrupt" in refused(root, name, factory=None if name.endswith("pt2") else "model:net")


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("form", ["zip", "plain", "module"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(write: Write, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write("model.py", MODEL)
    monkeypatch.chdir(root)
    if form == "plain":
        (root / "net.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    else:
        torch.save({"state_dict": Trap()} if form == "zip" else net(), root / "net.pt")
    message = refused(root, "net.pt")
    assert "checkpoint 'net.pt' was refused: it is a pickle that would run code" in message
    assert "safetensors.torch.save_file(model.state_dict()" in message
    assert not (root / "trapped").exists()


def test_a_file_without_a_state_dict_lists_what_it_has(write: Write) -> None:
    root = write("model.py", MODEL)
    torch.save({"epoch": 3, "weights": net().state_dict()}, root / "net.pt")
    assert "holds no state dict: found epoch, weights. Put it at the top or under state_dict, model_state_dict, model" in refused(
        root, "net.pt"
    )
    torch.save([1, 2], root / "net.pt")
    assert "found list" in refused(root, "net.pt")


def test_wrong_shapes_are_listed_with_both(write: Write) -> None:
    root = write("model.py", MODEL)
    save_file(net(8).state_dict(), root / "net.safetensors")
    message = refused(root, "net.safetensors")
    assert "0.weight is (8, 3) in the file, (4, 3) in the model; 0.bias is (8,) in the file, (4,) in the model" in message
    assert "and 4 more" in message
    load_model(ModelSpec("net.safetensors", "model:net", {"width": 8}), root)


def test_missing_and_unexpected_keys_are_counted_and_the_nearest_is_named(write: Write) -> None:
    root, state = write("model.py", MODEL), net().state_dict()
    state["0.weigth"] = state.pop("0.weight")
    save_file(state, root / "net.safetensors")
    message = refused(root, "net.safetensors")
    assert "1 missing: 0.weight; 1 unexpected: 0.weigth" in message
    assert "The model's '0.weight' may be the file's '0.weigth'" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_name_their_tensor(write: Write, value: float) -> None:
    root, state = write("model.py", MODEL), net().state_dict()
    state["3.weight"][1, 2] = value
    save_file(state, root / "net.safetensors")
    assert "has NaN or infinite weights: 3.weight has 1 of 8" in refused(root, "net.safetensors")


def test_a_factory_that_returns_no_module_says_what_it_returned(write: Write) -> None:
    root = write("model.py", MODEL)
    save_file(net().state_dict(), root / "net.safetensors")
    assert "'model:nothing' returned dict: a torch.nn.Module is needed" in refused(root, "net.safetensors", factory="model:nothing")


def program(path: Path) -> torch.export.ExportedProgram:
    exported = torch.export.export(net().eval(), (torch.randn(2, 3),), dynamic_shapes=({0: Dim("batch", min=1)},))
    torch.export.save(exported, path)
    return exported


def test_a_whole_program_needs_no_factory(tmp_path: Path) -> None:
    expected = program(tmp_path / "net.pt2")
    loaded = load_model(ModelSpec("net.pt2"), tmp_path)
    assert isinstance(loaded, torch.export.ExportedProgram)
    x = torch.randn(5, 3)
    torch.testing.assert_close(loaded.module()(x), expected.module()(x))
    assert count_macs(loaded, [x.numpy()]) == 3 * 4 + 4 * 2


@pytest.mark.parametrize("part", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0"])
def test_a_program_with_a_pickle_inside_is_refused_and_runs_nothing(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program(tmp_path / "good.pt2")
    torch.save(Trap(), tmp_path / "trap.bin")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "net.pt2", "w") as bad:
        top = good.namelist()[0].partition("/")[0]
        for name in good.namelist():
            if not name.endswith(part):
                bad.writestr(name, good.read(name))
        bad.writestr(f"{top}/{part}", (tmp_path / "trap.bin").read_bytes())
    with pytest.raises(ProjectError, match="a pickle that could run code"):
        read_program(tmp_path / "net.pt2")
    assert not (tmp_path / "trapped").exists()


def test_a_state_dict_read_alone_has_its_tensors_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_state_dict(tmp_path / "x.safetensors")["a"].tolist() == [1.0, 1.0]
