"""What several processes do together in tests: the first calls a function here, and `together` calls it in the others."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.train import TrainConfig, TrainResult, task_loss, train, trainable
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import Cut, Listed, accuracy, conv, images, loss_until, mlp, program, vectors, weights

CONFIG = TrainConfig(epochs=3, batch=32, lr=0.1, ema=0.9, clip=1.0, checkpoint_every_s=0.0)
Found = tuple[TrainResult, dict[str, Tensor]]


class Tied(nn.Module):
    """Two layers with one weight, a frozen one, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.idle = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(self.frozen(x))))))


class WithProjector:
    """An objective with a layer of its own, and a hook in the module."""

    def __init__(self, module: nn.Module) -> None:
        torch.manual_seed(4)
        self.layer, self.seen = nn.Linear(3, 3), 0
        module.register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen += 1

    def modules(self) -> list[nn.Module]:
        return [self.layer]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.layer(module(*inputs)), labels)


def plain(folder: Path, strategy: str) -> Found:
    module, data = mlp(), vectors()
    result = train(module, data, task_loss(), replace(CONFIG, strategy=strategy), folder, accuracy(data))
    return result, weights(module)


def tied(folder: Path, strategy: str) -> Found:
    module = Tied()
    result = train(module, vectors(), task_loss(), replace(CONFIG, strategy=strategy, ema=None), folder)
    assert module.second.weight is module.first.weight
    return result, weights(module)


def exported(folder: Path, strategy: str) -> Found:
    module = trainable(program(mlp(), torch.randn(2, 6)))
    before = dict(module.named_parameters())
    objective = WithProjector(module)
    config = replace(CONFIG, strategy=strategy, optimizer="adamw", lr=0.01, batch=16, accumulate=2, activation_checkpointing=True)
    result = train(module, vectors(), objective, config, folder)
    assert objective.seen > 0 and all(before[name] is parameter for name, parameter in module.named_parameters())
    return result, weights(module) | {"projector": objective.layer.weight.detach()}


def normed(folder: Path, strategy: str) -> Found:
    net = conv()
    net.drop.p = 0.0  # its draws depend on the order of a tensor's elements in memory, which is another in shards
    module = trainable(program(net, torch.randn(2, 3, 8, 8)))
    result = train(module, images(), task_loss(), replace(CONFIG, strategy=strategy, ema=None, augment=("flip", "crop2")), folder)
    return result, weights(module)


def cut(folder: Path, strategy: str, at: int | None = 5) -> Found:
    """Cut after some steps, and trained to the end."""
    left(folder, strategy, at)
    return left(folder, strategy, None)


def left(folder: Path, strategy: str, at: int | None = 5) -> Any:
    """Cut after some steps and left so, where `at` says when."""
    module, data = mlp(), vectors()
    with contextlib.suppress(Cut):
        return train(module, data, task_loss(loss_until(at)), replace(CONFIG, strategy=strategy), folder, accuracy(data)), weights(module)


def held(folder: Path, strategy: str) -> int:
    """How many weights the first process holds while it waits for data."""
    module, seen = mlp(), []

    class Watching(Listed):
        def __getitem__(self, index: int) -> Any:
            seen.append(sum(getattr(p, "_local_tensor", p).numel() for p in module.parameters()))
            return super().__getitem__(index)

    data = Watching([(x, int(y)) for x, y in zip(*vectors().tensors, strict=True)])
    train(module, data, task_loss(), replace(CONFIG, strategy=strategy, epochs=1), folder)
    return min(seen)


def timed(folder: Path, strategy: str) -> Found:
    """A training that ends, and lowers its rate, by the clock of the first process."""
    module = mlp()
    rank = int(os.environ.get("RANK", 0))

    def slow(outputs: Tensor, labels: Tensor) -> Tensor:
        time.sleep(0.01 * rank)
        return nn.functional.cross_entropy(outputs, labels)

    config = replace(CONFIG, strategy=strategy, ema=None, epochs=1000, time_limit_s=0.3)
    return train(module, vectors(), task_loss(slow), config, folder), weights(module)


def refused(folder: Path, strategy: str) -> list[str]:
    """What is said of modules and objectives that cannot be cut."""
    kept, hooked, scalar, texts = mlp(), mlp(), mlp(), []
    parameters = list(kept.parameters())
    hooked[0].weight.register_hook(lambda gradient: gradient)
    scalar.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))

    def penalty(module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        return module(*inputs).sum() + sum(parameter.square().sum() for parameter in parameters)

    for name, module, objective in (("kept", kept, penalty), ("hooked", hooked, task_loss()), ("scalar", scalar, task_loss())):
        try:
            train(module, vectors(), objective, replace(CONFIG, strategy=strategy), folder / name)
            texts.append("")
        except TrainingError as error:
            texts.append(str(error))
    return texts


def everything(params: dict[str, Any], _: Path) -> dict[str, Any]:
    """All of the above, by strategy and name."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        jobs: list[Any] = [plain, tied, exported, normed, cut, left, held, timed] + ([refused] if strategy == "fsdp" else [])
        found[strategy] = {job.__name__: job(Path(params["folder"]) / strategy / job.__name__, strategy) for job in jobs}
    return found


def killed(params: dict[str, Any], _: Path) -> None:
    """A training whose second process is killed in its third step."""
    steps = 0

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, labels)

    train(mlp(), vectors(), task_loss(loss), CONFIG, Path(params["folder"]))
