"""Settings and calls on their way to DeepSpeed, with a stand-in for the package: none of these tests trains through it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning_fabric.strategies.deepspeed as strategies
import pytest
import torch

from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.compress.training.deepspeed import Engine, make_strategy
from edgepress.compress.training.fabric import Step
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import mlp, vectors

CONFIG = TrainConfig(strategy="deepspeed", batch=32, clip=0.5)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of DeepSpeed as Fabric's strategy touches when it is made."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text(
        "import logging, types\nutils = types.SimpleNamespace(logging=types.SimpleNamespace(logger=logging.getLogger('stand-in')))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(strategies, "_DEEPSPEED_AVAILABLE", True)
    monkeypatch.setattr(strategies, "_DEEPSPEED_GREATER_EQUAL_0_16", True)


def test_a_missing_package_is_told_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"strategy is 'deepspeed': it is not installed\. pip install deepspeed"):
        make_strategy(CONFIG, world=2, cuda=True)


@pytest.mark.usefixtures("installed")
def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"it trains on CUDA GPUs and there is none\. Take fsdp or ddp"):
        train(mlp(), vectors(), task_loss(), CONFIG, tmp_path)


@pytest.mark.usefixtures("installed")
def test_settings_reach_its_configuration() -> None:
    found: Any = make_strategy(CONFIG, world=4, cuda=True).config
    assert found["zero_optimization"]["stage"] == 2
    assert (found["gradient_clipping"], found["train_micro_batch_size_per_gpu"]) == (0.5, 8)


class StandIn:
    """Engine and fabric in one: remembers checkpoints by folder and tag."""

    def __init__(self) -> None:
        self.strategy = SimpleNamespace(model=self)
        self.saved: dict[tuple[str, str], int] = {}
        self.read: list[int] = []

    def setup(self, step: Step, optimizer: torch.optim.Optimizer) -> tuple[StandIn, torch.optim.Optimizer]:
        return self, optimizer

    def save_checkpoint(self, folder: str, tag: str) -> None:
        self.saved[folder, tag] = len(self.saved)

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str | None, dict[str, Any]]:
        if (folder, tag) not in self.saved:
            return None, {}
        self.read.append(self.saved[folder, tag])
        return tag, {}


def made(stand_in: Any, folder: Path) -> Engine:
    return Engine(Step(mlp(), task_loss()), CONFIG, stand_in, folder)


def test_the_checkpoint_before_stays_until_the_next_is_whole(tmp_path: Path) -> None:
    stand_in = StandIn()
    engine = made(stand_in, tmp_path)
    first, second, third = (engine.optimizer_state() for _ in range(3))
    assert first == third != second and len(stand_in.saved) == 2
    again = made(stand_in, tmp_path)
    again.load_optimizer_state(second)
    assert stand_in.read == [1] and again.optimizer_state() == first


@pytest.mark.parametrize("state", [{"tag": "deepspeed-a"}, {"state": {}, "param_groups": []}])
def test_going_on_from_what_it_did_not_write_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"DeepSpeed goes on from its own checkpoint alone\. Delete"):
        made(StandIn(), tmp_path).load_optimizer_state(state)
