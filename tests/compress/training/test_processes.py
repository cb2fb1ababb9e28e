"""Several processes that train together, over gloo on the loopback device."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepress.compress.train import TrainConfig, together, trainable
from edgepress.compress.training import checkpoint
from edgepress.compress.training.fabric import may_leave_unused
from tests.compress.training import jobs
from tests.compress.training.nets import conv, mlp, program, same

ROOT = Path(__file__).parents[3]
STRATEGIES = ("ddp", "fsdp")
CODE = """
import sys, torch
from pathlib import Path
from tests.compress.training import jobs
torch.save(jobs.plain(Path(sys.argv[1]), "auto")[1], Path(sys.argv[1]) / f"rank{sys.argv[2]}.pt")
"""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found, by strategy and job, and `folder`: theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        params = {"folder": str(tmp_path_factory.mktemp("processes"))}
        with together(TrainConfig(devices=2), "tests.compress.training.jobs:everything", params):
            found = jobs.everything(params, Path())
    return found | {"folder": Path(params["folder"])}


def close(found: jobs.Found, wanted: jobs.Found) -> None:
    """The same training, but for rounding."""
    ours, theirs = found[0], wanted[0]
    assert ours.steps == theirs.steps and ours.best == pytest.approx(theirs.best)
    assert [row["loss"] for row in ours.history] == pytest.approx([row["loss"] for row in theirs.history], abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, tensor in wanted[1].items():
        assert type(found[1][name]) is torch.Tensor
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("job", [jobs.plain, jobs.tied, jobs.exported])
def test_two_processes_give_the_weights_of_one_with_the_same_global_batch(
    job: Callable[[Path, str], jobs.Found], strategy: str, by_two: dict[str, Any], tmp_path: Path
) -> None:
    close(by_two[strategy][job.__name__], job(tmp_path, "auto"))


def test_running_statistics_in_shards_are_those_of_ddp(by_two: dict[str, Any]) -> None:
    close(by_two["fsdp"]["normed"], by_two["ddp"]["normed"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_training_of_two_that_was_cut_ends_with_the_weights_of_one_that_was_not(strategy: str, by_two: dict[str, Any]) -> None:
    assert same(by_two[strategy]["cut"][1], by_two[strategy]["plain"][1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_from_a_checkpoint_that_two_wrote(strategy: str, by_two: dict[str, Any]) -> None:
    close(jobs.left(by_two["folder"] / strategy / "left", "auto", None), by_two[strategy]["plain"])


def test_in_shards_each_process_holds_its_rows(by_two: dict[str, Any]) -> None:
    assert by_two["ddp"]["held"] == 6 * 16 + 16 + 16 * 3 + 3
    assert by_two["fsdp"]["held"] == 6 * 8 + 8 + 16 * 2 + 2  # of three rows the first process has two


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_processes_with_other_clocks_end_in_time_together(strategy: str, by_two: dict[str, Any]) -> None:
    result, state = by_two[strategy]["timed"]
    assert result.stopped == "time limit" and all(torch.isfinite(tensor).all() for tensor in state.values())


def test_what_cannot_be_cut_into_shards_is_told(by_two: dict[str, Any]) -> None:
    kept, hooked, scalar = by_two["fsdp"]["refused"]
    assert "reads parameters that it kept from before training: strategy 'fsdp'" in kept and "Take ddp" in kept
    assert "'0.weight' has a gradient hook" in hooked and "Take ddp" in hooked
    assert "'scale' is a scalar" in scalar


@pytest.mark.slow
def test_processes_started_from_outside_train_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", CODE, str(tmp_path), rank]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    _, alone = jobs.plain(tmp_path / "alone", "auto")
    for rank in (0, 1):
        for name, tensor in torch.load(tmp_path / f"rank{rank}.pt").items():
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-5)
    assert checkpoint.load(tmp_path / checkpoint.STATE) is not None


def test_ddp_looks_for_unused_parameters_where_there_may_be_some() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(x), self.two(x)

    vector = torch.randn(2, 6)
    assert not may_leave_unused(trainable(program(mlp(), vector)))
    assert not may_leave_unused(trainable(program(conv(), torch.randn(2, 3, 8, 8))))
    assert may_leave_unused(trainable(program(jobs.Tied(), vector)))  # it has a layer that nothing reads
    assert may_leave_unused(trainable(program(Twice(), vector)))  # a loss may read one of the outputs
    assert may_leave_unused(mlp())
