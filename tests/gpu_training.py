"""A training of an exported attention model on a GPU, in a process that sees one; prints what came out as JSON."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.train import TrainConfig, task_loss, to_program, train, trainable
from edgepress.compress.training.checkpoint import digest
from tests.compress.training.nets import Cut, accuracy, loss_until, program, vectors


class Attention(nn.Module):
    """Numbers as tokens, with positions and a mask that the graph computes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.places = nn.Linear(1, 16), nn.Embedding(6, 16)
        self.key, self.leave = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        tokens = self.enter(x[:, :, None]) + self.places(places)
        mask = torch.where(places[None] <= places[:, None], 0.0, -1e4).to(tokens.dtype)
        scores = self.key(tokens) @ tokens.mT / 4 + mask
        return self.leave((scores.softmax(-1) @ tokens).mean(1))


def learn(precision: str, folder: Path, cut_at: int | None = None) -> dict[str, Any]:
    """One training from the same start, given up at a step where that is asked for; what it did, and where the module is now."""
    torch.manual_seed(0)
    data = vectors()
    exported = program(Attention(), data.tensors[0][:2])
    module = trainable(exported)

    config = TrainConfig(
        epochs=20, batch=16, optimizer="adamw", lr=0.01, ema=0.9, clip=1.0, precision=precision, seed=1, checkpoint_every_s=0.0
    )
    result = train(module, data, task_loss(loss_until(cut_at)), config, folder, accuracy(data))
    torch.testing.assert_close(to_program(module, exported).module(check_guards=False)(data.tensors[0]), module(data.tensors[0]))
    devices = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}
    return {
        "start": result.start,
        "best": result.best,
        "remarks": result.remarks,
        "devices": sorted(devices),
        "digest": digest(module.state_dict()),
    }


def main(folder: Path) -> None:
    """Train in every precision; in float a second time with the same seed, and a third time cut in the middle."""
    results = {precision: learn(precision, folder / precision) for precision in ("fp32", "bf16", "fp16")}
    results["again"] = learn("fp32", folder / "again")
    with suppress(Cut):
        learn("fp32", folder / "cut", cut_at=50)
    results["cut"] = learn("fp32", folder / "cut")
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
