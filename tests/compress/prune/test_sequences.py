from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nets import Head, conv, image
from .proof import kinds, prove


def steps(features: int = 5) -> Tensor:
    return torch.randn(2, 6, features, generator=torch.Generator().manual_seed(1))


class Tagger(nn.Module):
    def __init__(self, inner: nn.Module, width: int, last: bool = False) -> None:
        super().__init__()
        self.project, self.inner, self.out, self.last = nn.Linear(5, 7), inner, nn.Linear(width, 3), last

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.inner(F.relu(self.project(x)))
        if self.last:
            return self.out(state[0][-1] if isinstance(state, tuple) else state[-1])
        return self.out(y)


@pytest.mark.parametrize(
    ("inner", "width", "last"),
    [
        pytest.param(nn.LSTM(7, 8, batch_first=True), 8, False, id="LSTM"),
        pytest.param(nn.LSTM(7, 8, num_layers=2, batch_first=True), 8, True, id="LSTM of two layers, last state"),
        pytest.param(nn.LSTM(7, 8, batch_first=True, bidirectional=True), 16, False, id="bidirectional LSTM"),
        pytest.param(nn.LSTM(7, 8, 2, bias=False, batch_first=True, bidirectional=True), 16, False, id="two bidirectional layers"),
        pytest.param(nn.GRU(7, 8, batch_first=True), 8, False, id="GRU"),
        pytest.param(nn.GRU(7, 8, num_layers=2, batch_first=True), 8, True, id="GRU of two layers, last state"),
        pytest.param(nn.RNN(7, 8, batch_first=True), 8, False, id="RNN"),
    ],
)
def test_recurrent_layers_lose_hidden_features_in_all_gates(inner: nn.Module, width: int, last: bool) -> None:
    structure = prove(Tagger(inner, width, last), steps())
    assert kinds(structure) == {"neurons": 7 + 8}


def test_mixer_loses_hidden_features_over_tokens_and_over_channels() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
            self.tokens = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
            self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = x + self.tokens(self.norm(x).mT).mT
            x = x + self.channels(self.norm(x))
            return self.head(x.mean(1))

    assert kinds(prove(Mixer(), image())) == {"neurons": 7 + 9}


def test_tied_embeddings_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mix, self.out = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.mix(self.embedding(x)).sum(1)))

    structure = prove(Tied(), torch.randint(9, (2, 4)))
    assert structure.unit_count == 6


def test_convnext_block() -> None:
    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
            self.up, self.down = nn.Linear(channels, 10), nn.Linear(10, channels)
            self.scale = nn.Parameter(torch.ones(channels))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)

    structure = prove(nn.Sequential(conv(3, 6), Block(6), Block(6), Head(6)), image())
    assert kinds(structure) == {"neurons": 20}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        pytest.param(nn.GroupNorm(4, 8), {"groups": 4, "channels": 6}, id="groups"),
        pytest.param(nn.GroupNorm(8, 8), {"channels": 8 + 6}, id="group-of-one-channel"),
        pytest.param(nn.GroupNorm(1, 8), {"channels": 6}, id="one-group"),
        pytest.param(nn.InstanceNorm2d(8, affine=True), {"channels": 8 + 6}, id="instance"),
        pytest.param(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), {"channels": 8 + 6}, id="instance-statistics"),
        pytest.param(nn.BatchNorm2d(8, affine=False), {"channels": 8 + 6}, id="batch"),
        pytest.param(nn.LayerNorm((8, 8, 8)), {"channels": 6}, id="layer"),
        pytest.param(nn.LocalResponseNorm(3), {"channels": 6}, id="response"),
    ],
)
def test_norms_pin_what_they_average_over(norm: nn.Module, expected: dict[str, int]) -> None:
    assert kinds(prove(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, conv(8, 6), Head(6)), image())) == expected
