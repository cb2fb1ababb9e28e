"""Several processes that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.compress.training import checkpoint
from tests.compress.training.nets import accuracy, mlp, vectors, weights

ROOT = Path(__file__).parents[3]
CONFIG = TrainConfig(epochs=3, batch=32, lr=0.1, ema=0.9, clip=1.0)
CODE = """
import sys, torch
from pathlib import Path
from tests.compress.training.test_processes import CONFIG, accuracy, mlp, task_loss, train, vectors, weights
module, folder = mlp(), Path(sys.argv[1])
result = train(module, vectors(), task_loss(), CONFIG, folder, accuracy(vectors()))
torch.save((weights(module), result.best, result.steps, [line["loss"] for line in result.history]), folder / f"rank{sys.argv[2]}.pt")
"""


def together(folder: Path) -> None:
    """Run CODE in two processes over gloo on the loopback device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", CODE, str(folder), rank]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()


def test_two_processes_give_the_weights_of_one_with_the_same_global_batch(tmp_path: Path) -> None:
    together(tmp_path)
    module, data = mlp(), vectors()
    alone = train(module, data, task_loss(), CONFIG, tmp_path / "alone", accuracy(data))
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for state, best, steps, losses in found:
        assert (best, steps) == (pytest.approx(alone.best), alone.steps)
        assert losses == pytest.approx([line["loss"] for line in alone.history], abs=1e-5)
        for name, tensor in weights(module).items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)
    assert checkpoint.load(tmp_path / checkpoint.STATE) is not None
