"""Further processes of a training: how they start, fail and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from edgepress.compress.train import TrainConfig, follows, together
from edgepress.compress.training import launch
from edgepress.targets.errors import TrainingError
from tests.compress.training import jobs

ROOT = Path(__file__).parents[3]
TWO = TrainConfig(devices=2)
QUICK = "tests.compress.training.quick"


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def appeared(path: Path) -> int:
    """The process that `stay` noted."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text().split()[0])


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_the_other_process_shares_the_threads_and_ends_with_the_context(tmp_path: Path) -> None:
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with together(TWO, f"{QUICK}:stay", {"pid": str(tmp_path / "pid")}):
            launch.meet()
            pid, *facts = (tmp_path / "pid").read_text().split()
            assert facts == ["1", "2", "1", "True"]
            assert (os.environ["RANK"], os.environ["WORLD_SIZE"], torch.get_num_threads(), follows()) == ("0", "2", 1, False)
        assert gone(int(pid), 5)
        assert dict(os.environ) == before and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("config", "world"), [(TrainConfig(), ""), (TrainConfig(devices=1), ""), (TWO, "2"), (TrainConfig(devices=2, nodes=2), "")]
)
def test_nothing_starts_where_one_process_is_enough_or_others_were_started(
    config: TrainConfig, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    before = dict(os.environ)
    with together(config, f"{QUICK}:crash", {}):
        assert not launch.launched() and dict(os.environ) == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("refuse", "process 1 of 2: no such data: it moved. Look for it."),
        ("crash", "process 1 of 2: ValueError: seven. The traceback is in the log."),
        ("leave", "process 1 of 2 ended without training"),
    ],
)
def test_a_process_that_does_not_come_to_train_is_named(function: str, message: str) -> None:
    with pytest.raises(TrainingError) as caught, together(TWO, f"{QUICK}:{function}", {}):
        launch.meet()
    assert message in str(caught.value) and "WORLD_SIZE" not in os.environ


def test_the_other_process_can_be_forked(tmp_path: Path) -> None:
    """Where samples are slow to read, a `DataLoader` forks; such a process waited for ever for the lock of `sys.stdin`."""
    with together(TWO, f"{QUICK}:fork", {"file": str(tmp_path / "file")}):
        launch.meet()
    assert (tmp_path / "file").exists()


def test_a_process_that_dies_in_training_is_named(tmp_path: Path) -> None:
    params = {"folder": str(tmp_path)}
    with (
        pytest.raises(TrainingError, match=r"process 1 of 2 was killed by signal 9\. Run again"),
        together(TWO, "tests.compress.training.jobs:killed", params),
    ):
        jobs.killed(params, tmp_path)
    assert not torch.distributed.is_initialized()


def test_an_error_of_the_first_process_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), together(TWO, f"{QUICK}:stay", {"pid": str(tmp_path / "pid")}):
        pid = appeared(tmp_path / "pid")
        raise KeyError("mine")
    assert gone(pid, 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_other_process_ends_with_a_first_one_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys, time; from edgepress.compress.train import TrainConfig, together\n"
        f"with together(TrainConfig(devices=2), '{QUICK}:stay', {{'pid': sys.argv[1]}}): time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")], cwd=ROOT)
    try:
        pid = appeared(tmp_path / "pid")
        parent.send_signal(number)
        parent.wait(10)
        assert gone(pid, 10)
    finally:
        parent.kill()


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match="devices is 2: this machine has 1 GPU"), together(TWO, f"{QUICK}:crash", {}):
        pass
