"""One file per compressed model, and the model again from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgepress.compress.compressed import Origin, load, save_class
from edgepress.compress.project.usercode import load_callable
from edgepress.compress.prune import analyse, remove
from edgepress.compress.prune.user_class import rebuild
from edgepress.compress.train import set_training
from edgepress.targets.errors import ProjectError
from tests.compress.prune import class_nets

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute self.seen was assigned:UserWarning")
MODULE = "shrinking_net"
CODE = """
import os
from functools import partial
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, width=16, heads=4, tied=False):
        super().__init__()
        self.sizes = (heads, width // heads)
        self.conv = nn.Conv1d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.other = nn.Linear(width, 5, bias=False)
        if tied:
            self.other.weight = self.head.weight
        self.gain = torch.ones(width)
        self.register_buffer("shift", torch.zeros(width), persistent=False)

    def forward(self, x):
        x = self.drop(F.relu(self.norm(self.conv(x)))).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = self.qkv(x * self.gain + self.shift).reshape(b, n, 3, *self.sizes).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = (x + self.proj(mixed)).mean(1)
        self.seen = x.detach()
        return self.head(x) + self.other(-x).tanh()

def net(width=16):
    return Net(width)

wide = partial(Net, 32)

def nothing():
    return 3

Hidden = os.system
"""
INPUT = torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(CODE)
    yield folder
    sys.modules.pop(MODULE, None)


def shrink(model: nn.Module, fresh: nn.Module) -> tuple[nn.Module, Any]:
    """The fresh model with half of the other's units."""
    program = torch.export.export(model.eval(), (INPUT,))
    structure = analyse(program)
    removed = np.zeros(structure.unit_count, dtype=bool)
    for family in structure.families:
        removed[list(family.units[::2])] = True
    assert structure.smallest(removed) > 0
    result = rebuild(fresh, remove(program, structure, removed), structure, removed, [INPUT])
    assert result.module is not None, result.why
    return result.module, result.attributes


@pytest.fixture
def saved(code: Path) -> tuple[Path, nn.Module]:
    origin = Origin(f"{MODULE}:net", {"width": 24}, code)
    make = load_callable(origin.factory, code)
    module, attributes = shrink(make(width=24), make(width=24))
    path = code / "small.safetensors"
    save_class(path, module, attributes, origin)
    return path, module


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(INPUT)
    return result


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["edgepress"])
    return about


def rewrite(path: Path, drop: str | None = None, **changes: Any) -> None:
    about = {key: value for key, value in {**metadata(path), **changes}.items() if value is not None}
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file(tensors, path, metadata={"edgepress": json.dumps(about)})


def test_the_users_class_comes_back_from_one_file(saved: tuple[Path, nn.Module]) -> None:
    path, module = saved
    loaded: Any = load(path)
    assert type(loaded).__name__ == "Net" and not loaded.training
    assert torch.equal(output(loaded), output(module))
    assert loaded.sizes == module.sizes == (2, 3) and isinstance(loaded.sizes, tuple)
    assert loaded.conv.out_channels == loaded.norm.num_features == len(loaded.gain) == len(loaded.shift) == 12


def test_a_loaded_class_trains_exports_and_is_saved_again(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, _ = saved
    loaded = load(path).train()
    mean = loaded.norm.running_mean.clone()
    loaded(INPUT).square().mean().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert not torch.equal(loaded.norm.running_mean, mean)
    loaded.eval()
    expected = output(loaded)
    program = torch.export.export(loaded, (INPUT,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.allclose(output(program.module()), expected, atol=1e-6)
    about = metadata(path)
    save_class(tmp_path / "again.safetensors", loaded, about["attributes"], Origin(about["factory"], about["args"], path.parent))
    assert torch.equal(output(load(tmp_path / "again.safetensors")), expected)


def test_the_same_model_gives_the_same_bytes(saved: tuple[Path, nn.Module]) -> None:
    path, module = saved
    about = metadata(path)
    other = path.with_name("other.safetensors")
    save_class(other, module, about["attributes"], Origin(about["factory"], about["args"], path.parent))
    assert path.read_bytes() == other.read_bytes()


def test_user_code_is_found_beside_the_file_where_it_was_or_where_the_caller_says(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, module = saved
    moved = tmp_path / "elsewhere" / "small.safetensors"
    moved.parent.mkdir()
    path.rename(moved)
    assert torch.equal(output(load(moved)), output(module))
    gone = path.parent.rename(tmp_path / "gone")
    sys.modules.pop(MODULE)
    with pytest.raises(ProjectError, match=f"module '{MODULE}' was not found"):
        load(moved)
    assert torch.equal(output(load(moved, gone)), output(module))


def test_a_graph_comes_back_as_a_module_that_trains(tmp_path: Path) -> None:
    model = class_nets.ResidualNet().eval()
    images = torch.randn(4, 3, 8, 8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    structure = analyse(program)
    removed = np.zeros(structure.unit_count, dtype=bool)
    removed[::3] = True
    smaller = remove(program, structure, removed)
    torch.export.save(smaller, tmp_path / "model.pt2")
    loaded = load(tmp_path / "model.pt2")
    with torch.no_grad():
        expected = smaller.module()(images)
        assert torch.allclose(loaded(images), expected, atol=1e-6)
        set_training(loaded, True)
        assert not torch.allclose(loaded(images), expected, atol=1e-3)
    loaded(images).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    set_training(loaded, False)
    assert torch.export.export(loaded, (images,)).state_dict.keys() == dict(loaded.state_dict()).keys()


def test_tied_weights_are_stored_once_and_stay_tied(code: Path) -> None:
    origin = Origin(f"{MODULE}:Net", {"tied": True}, code)
    module = load_callable(origin.factory, code)(tied=True).eval()
    path = code / "tied.safetensors"
    save_class(path, module, {}, origin)
    assert "head.weight" in load_file(path) and "other.weight" not in load_file(path)
    loaded: Any = load(path)
    assert loaded.other.weight is loaded.head.weight
    assert torch.equal(output(loaded), output(module))
    rewrite(path, tied={})
    with pytest.raises(ProjectError, match=r"1 missing: other\.weight"):
        load(path)


def test_factories_may_be_classes_and_partials(code: Path) -> None:
    for name, args in (("Net", {"width": 8}), ("wide", {})):
        module = load_callable(f"{MODULE}:{name}", code)(**args).eval()
        path = code / f"{name}.safetensors"
        save_class(path, module, {}, Origin(f"{MODULE}:{name}", args, code))
        assert torch.equal(output(load(path)), output(module))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": None}, "no valid 'factory'"),
        ({"attributes": [1]}, "no valid 'attributes'"),
        ({"tied": {"other.weight": ["head.weight"]}}, "no valid 'tied'"),
        ({"form": 99}, "has form 99"),
        ({"factory": "shrinking_net"}, "names no factory"),
        ({"factory": "shrinking_net:nett"}, "'shrinking_net:nett' was not found"),
        ({"factory": "shrinking_net:nothing", "args": {}}, "returned int"),
        ({"factory": "os:system", "args": {"command": "exit 3"}}, "'os:system' was refused"),
        ({"factory": "shrinking_net:Hidden", "args": {"command": "exit 3"}}, "'shrinking_net:Hidden' was refused"),
        ({"factory": "torch:load", "args": {"f": "x"}}, "'torch:load' was refused"),
        ({"args": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"attributes": {"conv": {"forward": 3}}}, "'conv.forward'"),
        ({"attributes": {"": {"sizes": [1, 2, 3]}}}, "'sizes'"),
        ({"attributes": {"nowhere": {"groups": 3}}}, "'nowhere.groups'"),
        ({"attributes": {"conv": {"groups": "3"}}}, "'conv.groups' to '3'"),
        ({"drop": "conv.bias"}, "1 missing: conv.bias"),
        ({"plain": []}, "1 unexpected: seen"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(saved: tuple[Path, nn.Module], changes: dict[str, Any], message: str) -> None:
    path, module = saved
    output(module)
    about = metadata(path)
    save_class(path, module, about["attributes"], Origin(about["factory"], about["args"], path.parent))
    rewrite(path, **changes)
    with pytest.raises(ProjectError) as raised:
        load(path)
    assert message in str(raised.value)


def test_files_of_others_and_damaged_ones_are_refused(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, _ = saved
    with pytest.raises(ProjectError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ProjectError, match="was not written by edgepress"):
        load(tmp_path / "foreign.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "text.safetensors", metadata={"edgepress": "{"})
    with pytest.raises(ProjectError, match="its metadata is no JSON"):
        load(tmp_path / "text.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ProjectError, match=r"'small.safetensors' is damaged \(\d+ bytes\)"):
        load(path)
    (tmp_path / "model.pt2").write_bytes(b"PK no zip")
    with pytest.raises(ProjectError, match="truncated or corrupt"):
        load(tmp_path / "model.pt2")


def test_arguments_that_are_no_json_and_other_suffixes_are_refused(code: Path) -> None:
    module = load_callable(f"{MODULE}:net", code)()
    with pytest.raises(ProjectError, match="arguments of the model's factory"):
        save_class(code / "x.safetensors", module, {}, Origin(f"{MODULE}:net", {"width": torch.ones(1)}, code))
    with pytest.raises(ProjectError, match="is no name for weights"):
        save_class(code / "x.pt", module, {}, Origin(f"{MODULE}:net", {}, code))
    assert not list(code.glob("x.*"))
