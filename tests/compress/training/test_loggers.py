"""Numbers of a training to TensorBoard and MLflow."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import accuracy, mlp, vectors


class Recorder(ModuleType):
    """Takes the place of both loggers' modules and keeps what they are told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.said: list[tuple[Any, ...]] = []

    def SummaryWriter(self, folder: str) -> Recorder:  # the library's name
        self.said.append(("open", folder))
        return self

    def add_text(self, name: str, text: str) -> None:
        self.said.append((name, text))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.said.append((name, value, step))

    def close(self) -> None:
        self.said.append(("close",))

    def active_run(self) -> None:
        return None

    def start_run(self, nested: bool) -> None:
        self.said.append(("open", nested))

    def log_params(self, settings: Mapping[str, Any]) -> None:
        self.said.append(("settings", dict(settings)))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self.said += [(name, value, step) for name, value in values.items()]

    def end_run(self, status: str) -> None:
        self.said.append(("close", status))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_loss_metric_and_rate_reach_the_logger(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", recorder)
    config = TrainConfig(epochs=2, batch=32, log=(name,))
    result = train(mlp(), vectors(), task_loss(), config, tmp_path, accuracy(vectors()))
    wanted = [(key, line[key], step) for line, step in zip(result.history, (3, 6), strict=True) for key in ("loss", "metric", "lr")]
    assert [entry for entry in recorder.said if len(entry) == 3] == wanted
    assert recorder.said[0][0] == "open" and "epochs" in recorder.said[1][1] and recorder.said[-1][0] == "close"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_logger_that_is_not_installed_says_how_to_get_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(TrainingError, match=rf"log is '{name}': it is not installed. pip install {name}"):
        train(mlp(), vectors(), task_loss(), TrainConfig(batch=32, log=(name,)), tmp_path)
