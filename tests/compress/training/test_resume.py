"""Trainings that are cut and go on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgepress.compress.train import TrainConfig, TrainResult, task_loss, train
from edgepress.compress.training import checkpoint
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import Cut, accuracy, conv, images, loss_until, mlp, same, vectors, weights

CONFIG = TrainConfig(epochs=6, batch=16, lr=0.05, ema=0.9, augment=("flip", "crop2"), checkpoint_every_s=0.0, seed=7)
ROOT = Path(__file__).parents[3]


def run(
    folder: Path, cut_at: int | None = None, config: TrainConfig = CONFIG, calls: list[None] | None = None
) -> tuple[TrainResult, dict[str, Any]]:
    module, data = conv(), images()
    result = train(module, data, task_loss(loss_until(cut_at, calls)), config, folder, accuracy(data))
    return result, weights(module)


@pytest.mark.parametrize("cuts", [(1,), (6,), (9, 3, 5)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_was_cut_ends_with_the_weights_of_one_that_was_not(cuts: tuple[int, ...], optimizer: str, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    wanted, whole = run(tmp_path / "whole", config=config)
    calls: list[None] = []
    for cut in cuts:
        with pytest.raises(Cut):
            run(tmp_path / "cut", cut, config, calls)
    result, pieces = run(tmp_path / "cut", config=config, calls=calls)
    assert len(calls) == wanted.steps  # no step was taken twice
    assert same(whole, pieces)
    timeless = [[{**line, "seconds": 0} for line in r.history] for r in (wanted, result)]
    assert timeless[0] == timeless[1]
    assert (wanted.best, wanted.best_epoch, wanted.steps) == (result.best, result.best_epoch, result.steps)


@pytest.mark.slow
def test_a_process_killed_with_signal_9_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch; from pathlib import Path\n"
        "from tests.compress.training.test_resume import CONFIG, conv, images, nn, task_loss, train, weights\n"
        "def slow(outputs, labels):\n"
        "    time.sleep(float(sys.argv[2])); return nn.functional.cross_entropy(outputs, labels)\n"
        "module = conv(); folder = Path(sys.argv[1]); train(module, images(), task_loss(slow), CONFIG, folder)\n"
        "torch.save(weights(module), folder / 'final.pt')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str, delay: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name), str(delay)], env=environment, cwd=ROOT)

    killed = start("cut", 0.2)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / checkpoint.STATE).exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    found = checkpoint.load(tmp_path / "cut" / checkpoint.STATE)
    assert found is not None and 0 < found["state"]["steps"] < 24
    for name in ("cut", "whole"):
        assert start(name, 0.0).wait(120) == 0
    assert same(torch.load(tmp_path / "cut" / "final.pt"), torch.load(tmp_path / "whole" / "final.pt"))


def test_a_finished_training_gives_its_result_again_without_a_step(tmp_path: Path) -> None:
    wanted, first = run(tmp_path)
    result, again = run(tmp_path, cut_at=1)
    assert result == wanted and same(first, again)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run(tmp_path, 3)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt belongs to another training"):
        run(tmp_path, config=replace(CONFIG, lr=0.01))


def test_how_a_training_is_watched_may_change_when_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run(tmp_path, 3)
    assert run(tmp_path, config=replace(CONFIG, checkpoint_every_s=60.0))[0].stopped == "finished"


class Full:
    """A file on a disk that has no room left."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return int(self._file.fileno())


def test_a_full_disk_stops_the_training_and_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Cut):
        run(tmp_path, 6)
    before = (tmp_path / checkpoint.STATE).read_bytes()
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a, **k: Full(opened(self, *a, **k)) if self.suffix == ".new" else opened(self, *a, **k))
        with pytest.raises(TrainingError, match=r"cannot be written: No space left on device.*is intact.*Free space"):
            run(tmp_path)
    assert (tmp_path / checkpoint.STATE).read_bytes() == before and not list(tmp_path.glob("*.new"))
    assert same(run(tmp_path)[1], run(tmp_path / "whole")[1])


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run(tmp_path, 6)
    path = tmp_path / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read.*Delete it"):
        run(tmp_path)


def test_weights_of_the_best_epoch_survive_a_cut(tmp_path: Path) -> None:
    data, module = vectors(), mlp()
    metrics = iter([0.1, 0.9, 0.5])

    def cut(_: nn.Module) -> float:
        found = next(metrics, None)
        if found is None:
            raise Cut
        return found

    config = TrainConfig(epochs=4, batch=32, lr=0.1)
    with pytest.raises(Cut):
        train(module, data, task_loss(), config, tmp_path, cut)
    seen: list[dict[str, Any]] = []
    whole, rest = mlp(), mlp()

    def watch(module: nn.Module) -> float:
        seen.append(weights(module))
        return float(len(seen) == 2)

    train(whole, data, task_loss(), config, tmp_path / "whole", watch)
    result = train(rest, data, task_loss(), config, tmp_path, lambda _: 0.2)
    assert (result.best, result.best_epoch) == (0.9, 1)
    assert same(weights(rest), seen[1])
