from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nets import Head, conv, image
from .proof import kinds, prove


class Residual(nn.Module):
    def __init__(self, channels: int, middle: int, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv(channels, middle, 1), conv(middle, middle, groups=groups)
        self.c = nn.Sequential(nn.Conv2d(middle, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.c(self.b(self.a(x))))


class PaddedShortcut(nn.Module):
    """Strided by slicing, widened by zero channels on either side: parameter-free."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.body, self.pad = nn.Sequential(nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer)), (outer - inner) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)))


def test_plain_chain_frees_every_hidden_channel() -> None:
    structure = prove(nn.Sequential(conv(3, 8), conv(8, 6, stride=2), nn.MaxPool2d(2), Head(6)), image())
    assert kinds(structure) == {"channels": 8 + 6}


def test_residual_sum_ties_its_branches() -> None:
    structure = prove(nn.Sequential(conv(3, 8), Residual(8, 4), Residual(8, 5), Head(8)), image())
    assert [len(f.units) for f in structure.families] == [8, 4, 4, 5, 5]
    assert set(structure.families[0].layers) >= {"0.0", "1.c.0", "2.c.0", "3.fc"}


def test_padded_shortcut_keeps_the_residual_stream_prunable() -> None:
    structure = prove(nn.Sequential(conv(3, 6), PaddedShortcut(6, 10), PaddedShortcut(10, 12), Head(12)), image())
    assert kinds(structure) == {"channels": 12}
    assert sorted(len(f.units) for f in structure.families) == [2, 4, 6]


def test_depthwise_follows_its_input() -> None:
    net = nn.Sequential(conv(3, 8), conv(8, 8, groups=8), conv(8, 6, 1), Head(6))
    assert kinds(prove(net, image())) == {"channels": 8 + 6}


def test_depthwise_multiplier_frees_channels_and_copies() -> None:
    net = nn.Sequential(conv(3, 4), conv(4, 12, groups=4), Head(12))
    assert kinds(prove(net, image())) == {"channels": 4, "group_channels": 3}


def test_grouped_convolution_frees_whole_groups_and_channels_within() -> None:
    net = nn.Sequential(conv(3, 8), conv(8, 12, groups=4), Head(12))
    assert kinds(prove(net, image())) == {"groups": 4, "group_channels": 2 + 3}


def test_grouped_bottleneck() -> None:
    net = nn.Sequential(conv(3, 6), Residual(6, 8, groups=2), Head(6))
    assert kinds(prove(net, image())) == {"channels": 6, "groups": 2, "group_channels": 4 + 4}


def test_one_layer_grouped_in_two_ways() -> None:
    net = nn.Sequential(conv(3, 12), conv(12, 12, groups=4), conv(12, 12, groups=6), Head(12))
    assert prove(net, image()).unit_count > 0


def test_transposed_convolution() -> None:
    net = nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 5, 2, 2), nn.ReLU(), Head(5))
    assert kinds(prove(net, image())) == {"channels": 6 + 5}


def test_grouped_transposed_convolution() -> None:
    net = nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 9, 2, 2, groups=3), Head(9))
    assert kinds(prove(net, image())) == {"groups": 3, "group_channels": 2 + 3}


def test_flatten_before_a_linear_layer_removes_all_positions_of_a_channel() -> None:
    net = nn.Sequential(conv(3, 6), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 4))
    structure = prove(net, image())
    assert kinds(structure) == {"channels": 6, "neurons": 7}
    reader = next(f for f in structure.footprints if f.tensor == "3.weight" and f.role == "in")
    assert len(reader.index) == 54


def test_slope_per_channel() -> None:
    assert kinds(prove(nn.Sequential(nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.Conv2d(6, 5, 1), nn.PReLU(), Head(5)), image())) == {
        "channels": 11
    }


def test_three_dimensional_convolution() -> None:
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.AvgPool3d(2), nn.Conv3d(4, 3, 1), nn.Flatten(), nn.Linear(24, 2))
    assert kinds(prove(net, torch.randn(2, 2, 4, 4, 4))) == {"channels": 7}


def test_a_layer_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = conv(3, 6), conv(6, 6), Head(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(self.stem(x))))

    assert kinds(prove(Twice(), image())) == {"channels": 6}


def test_dilated_gated_one_dimensional_stack_with_skips() -> None:
    class Gated(nn.Module):
        def __init__(self, channels: int, dilation: int) -> None:
            super().__init__()
            self.filter = nn.Conv1d(channels, 6, 2, dilation=dilation)
            self.gate = nn.Conv1d(channels, 6, 2, dilation=dilation)
            self.out, self.skip, self.dilation = nn.Conv1d(6, channels, 1), nn.Conv1d(6, 5, 1), dilation

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            padded = F.pad(x, (self.dilation, 0))
            hidden = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
            return x + self.out(hidden), self.skip(hidden)

    class WaveNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(1, 8, 1)
            self.layers = nn.ModuleList(Gated(8, 2**i) for i in range(3))
            self.out = nn.Conv1d(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x, total = self.stem(x), torch.zeros(())
            for layer in self.layers:
                x, skip = layer(x)
                total = total + skip
            return self.out(F.relu(total))

    assert kinds(prove(WaveNet(), torch.randn(2, 1, 16))) == {"channels": 8 + 3 * 6 + 5}
