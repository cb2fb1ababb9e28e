from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nets import Head, conv, image
from .proof import kinds, prove


class Between(nn.Module):
    """Two convolutions with an operator between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor], outer: int = 8, inner: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Conv2d(3, outer, 3, padding=1), nn.Conv2d(inner, 4, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(F.relu(self.a(x))))


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def halves_swapped(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=1)
    return torch.cat([other.sigmoid(), one], 1)


def uneven(x: Tensor) -> Tensor:
    one, two, three = torch.split(x, [1, 4, 3], dim=1)
    return torch.cat([three, two * 2, one], 1)


@pytest.mark.parametrize(
    ("middle", "inner", "expected"),
    [
        pytest.param(halves_swapped, 8, {"channels": 8}, id="chunk-cat"),
        pytest.param(uneven, 8, {"channels": 7}, id="split-cat"),
        pytest.param(lambda x: x[:, 2:6], 4, {"channels": 8}, id="slice"),
        pytest.param(lambda x: torch.cat([x[:, :3], x[:, -2:]], 1), 5, {"channels": 8}, id="slices"),
        pytest.param(lambda x: x[:, ::2], 4, {}, id="strided-slice"),
        pytest.param(lambda x: x.narrow(1, 1, 5), 5, {"channels": 8}, id="narrow"),
        pytest.param(lambda x: F.glu(x, 1), 4, {"channels": 4}, id="glu"),
        pytest.param(lambda x: shuffled(x, 2), 8, {"channels": 6}, id="view-transpose-shuffle"),
        pytest.param(lambda x: F.channel_shuffle(x, 2), 8, {"channels": 6}, id="channel-shuffle"),
        pytest.param(lambda x: F.pixel_shuffle(x, 2), 2, {"channels": 2}, id="pixel-shuffle"),
        pytest.param(lambda x: F.pixel_unshuffle(x, 2), 32, {"channels": 8}, id="pixel-unshuffle"),
        pytest.param(lambda x: x.flip(1), 8, {"channels": 8}, id="flip"),
        pytest.param(lambda x: x.roll(1, 3), 8, {"channels": 8}, id="roll-positions"),
        pytest.param(lambda x: x[:, [3, 1, 0, 6]], 4, {"channels": 8}, id="list-of-indices"),
        pytest.param(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 11, {"channels": 11}, id="pad"),
        pytest.param(lambda x: F.pad(x, (1, 1, 1, 1, -1, 2), value=0.5), 9, {"channels": 10}, id="crop-and-pad"),
        pytest.param(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 8, {"channels": 8}, id="reflect"),
        pytest.param(lambda x: torch.stack([x, x.tanh()], 1).sum(1), 8, {"channels": 8}, id="stack-sum"),
        pytest.param(lambda x: torch.stack([x, x.tanh()], 2).flatten(1, 2), 16, {"channels": 8}, id="interleave"),
        pytest.param(lambda x: x * x[:, 3:4], 8, {"channels": 7}, id="one-channel-gates-all"),
        pytest.param(lambda x: x + x.select(1, 2).unsqueeze(1), 8, {"channels": 7}, id="select"),
        pytest.param(lambda x: sum(x.unbind(1)).unsqueeze(1), 1, {}, id="unbind"),
        pytest.param(lambda x: x.sum(1, keepdim=True) + x, 8, {"channels": 8}, id="sum-over-channels"),
        pytest.param(lambda x: x.mean(1, keepdim=True) + x, 8, {}, id="mean-over-channels"),
        pytest.param(lambda x: x.softmax(1), 8, {}, id="softmax-over-channels"),
        pytest.param(lambda x: x.flatten(2).softmax(-1).unflatten(2, (8, 8)), 8, {"channels": 8}, id="softmax-over-positions"),
        pytest.param(lambda x: x.amax(1, keepdim=True) * x, 8, {}, id="max-over-channels"),
        pytest.param(lambda x: x.cumsum(1), 8, {}, id="cumsum"),
        pytest.param(lambda x: x.repeat(1, 3, 1, 1), 24, {"channels": 11}, id="repeat"),
        pytest.param(lambda x: x.repeat_interleave(2, 1), 16, {"channels": 10}, id="repeat-interleave"),
        pytest.param(lambda x: F.interpolate(x, scale_factor=2.0), 8, {"channels": 8}, id="upsample"),
        pytest.param(lambda x: F.hardswish(x).clamp(-1, 1), 8, {"channels": 8}, id="hardswish"),
        pytest.param(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 8, {"channels": 8}, id="permute"),
        pytest.param(lambda x: torch.einsum("bchw,bchv->bcwv", x, x), 8, {"heads": 8}, id="einsum"),
        pytest.param(lambda x: torch.where(x > 0, x, torch.zeros_like(x)), 8, {"channels": 8}, id="where"),
        pytest.param(lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 8, {"channels": 8}, id="pool-with-indices"),
        pytest.param(lambda x: torch.cat([x, x.new_zeros(x.shape[0], 3, 8, 8)], 1), 11, {"channels": 11}, id="cat-zeros"),
        pytest.param(lambda x: x + x.topk(2, -1)[0].sum(-1, keepdim=True), 8, {"channels": 8}, id="topk"),
        pytest.param(lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)), 8, {"channels": 6}, id="grid-sample"),
        pytest.param(lambda x: x.repeat(1, 1, 1, 1).mul_(2), 8, {"channels": 8}, id="in-place"),
        pytest.param(lambda x: x.sum(2, keepdim=True).squeeze(2).add_(1).unsqueeze(2), 8, {"channels": 8}, id="squeeze"),
        pytest.param(lambda x: x.unfold(2, 2, 2).sum(-1), 8, {"channels": 8}, id="windows"),
        pytest.param(lambda x: F.unfold(x, 2, stride=2).unflatten(2, (4, 4)), 32, {"channels": 8}, id="patches"),
        pytest.param(lambda x: F.normalize(x, dim=1), 8, {"channels": 8}, id="normalise"),
    ],
)
def test_an_operator_between_convolutions(middle: Callable[[Tensor], Tensor], inner: int, expected: dict[str, int]) -> None:
    net = nn.Sequential(Between(middle, inner=inner), nn.Conv2d(4, 3, 1))
    assert kinds(prove(net, image())) == expected | {"channels": expected.get("channels", 0) + 4}


class C2f(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.out = conv(3, 8, 1), nn.ModuleList(conv(4, 4) for _ in range(2)), conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.stem(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.out(torch.cat(parts, 1))


class Elan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4, 1), conv(3, 5, 1)
        self.c, self.d, self.out = conv(5, 6), conv(6, 3), conv(18, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = self.c(b)
        return self.out(torch.cat([a, b, c, self.d(c)], 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), nn.Conv2d(6 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.out = conv(18, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.out(x)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 1), nn.Sequential(conv(3, 4, 1), conv(4, 5))
        self.c, self.d, self.out = nn.Sequential(conv(3, 3, 1), conv(3, 4, 5)), conv(3, 2, 1), conv(14, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x), self.b(x), self.c(x), self.d(F.max_pool2d(x, 3, 1, 1))], 1))


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return shuffled(torch.cat([left, self.branch(right)], 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 4), conv(4, 6), conv(6, 8)
        self.up2, self.merge2 = nn.ConvTranspose2d(8, 6, 2, 2), conv(12, 6)
        self.up1, self.merge1 = nn.Upsample(scale_factor=2, mode="bilinear"), conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        low = self.middle(F.avg_pool2d(two, 2))
        two = self.merge2(torch.cat([two, self.up2(low)], 1))
        return self.merge1(torch.cat([one, self.up1(two)], 1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.out = conv(3, 8), nn.Linear(8, 3), nn.Linear(3, 8), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
        return self.out(x * gate[:, :, None, None])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(C2f(), {"channels": 8 + 6}, id="C2f"),
        pytest.param(Elan(), {"channels": 18 + 6}, id="ELAN"),
        pytest.param(Dense(), {"channels": 18 + 6}, id="DenseNet"),
        pytest.param(Inception(), {"channels": 14 + 4 + 3 + 6}, id="Inception"),
        pytest.param(UNet(), {"channels": 4 + 6 + 8 + 6 + 6 + 6}, id="U-Net"),
        pytest.param(SqueezeExcite(), {"channels": 8 + 6, "neurons": 3}, id="squeeze-and-excite"),
    ],
)
def test_architectures_with_branches(body: nn.Module, expected: dict[str, int]) -> None:
    structure = prove(nn.Sequential(body, Head(6)), image())
    assert kinds(structure) == expected


def test_shuffle_units_stay_prunable() -> None:
    structure = prove(nn.Sequential(conv(3, 8), ShuffleUnit(8), ShuffleUnit(8), Head(8)), image())
    assert kinds(structure)["channels"] > 2 * 4


def test_two_inputs() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv(3, 6), conv(2, 6), Head(6)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.a(x) + self.b(y))

    assert kinds(prove(Fused(), image(), image(2))) == {"channels": 6}


def test_two_outputs_pin_only_what_the_user_reads() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mask, self.head = conv(3, 6), nn.Conv2d(6, 2, 1), Head(6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.stem(x)
            return {"classes": self.head(x), "mask": self.mask(x)}

    structure = prove(Heads(), image())
    assert kinds(structure) == {"channels": 6}
    assert [(p.op, p.count) for p in structure.pinned] == [("output", 4), ("output", 2)]
