from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepress.compress.prune import analyse, check, remove

from .nets import image
from .proof import expect_counts, export, removals

OPERATORS = (
    "conv",
    "grouped",
    "depthwise",
    "norm",
    "group_norm",
    "add",
    "mul",
    "cat",
    "split",
    "slice",
    "shuffle",
    "glu",
    "gate",
    "attend",
    "interleave",
    "flip",
    "pick",
    "pad",
    "linear",
)


@dataclass(frozen=True)
class Step:
    """One operator: its kind, which earlier tensors it reads (counted back), and how many channels it makes."""

    kind: str
    first: int
    second: int
    channels: int


steps = st.builds(Step, st.sampled_from(OPERATORS), st.integers(0, 5), st.integers(0, 5), st.sampled_from([4, 6, 8, 12]))


class Drawn(nn.Module):
    """A random acyclic graph of 4-dimensional tensors; every layer is made when the graph is first walked."""

    def __init__(self, drawn: list[Step]) -> None:
        super().__init__()
        self.drawn, self.layers, self.head = drawn, nn.ModuleDict(), nn.LazyLinear(3)
        self(image())

    def layer(self, name: str, make: object) -> nn.Module:
        if name not in self.layers:
            self.layers[name] = make()  # type: ignore[operator]
        return self.layers[name]

    def forward(self, x: Tensor) -> Tensor:
        known = [self.layer("stem", lambda: nn.Conv2d(3, 8, 3, padding=1))(x)]
        for number, step in enumerate(self.drawn):
            x, y = (known[max(0, len(known) - 1 - back)] for back in (step.first, step.second))
            known.append(self.apply_step(f"{number}", step, x, y))
        return self.head(torch.cat([k.mean((2, 3)) for k in known[-2:]], 1))

    def apply_step(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        channels = x.shape[1]
        if step.kind in ("add", "mul") and x.shape[1] != y.shape[1]:
            y = self.layer(f"{name}a", lambda: nn.Conv2d(y.shape[1], channels, 1))(y)
        groups = next(g for g in (4, 3, 2, 1) if channels % g == 0)
        match step.kind:
            case "conv":
                return F.relu(self.layer(name, lambda: nn.Conv2d(channels, step.channels, 3, padding=1))(x))
            case "grouped":
                return self.layer(name, lambda: nn.Conv2d(channels, groups * 3, 1, groups=groups))(x)
            case "depthwise":
                return self.layer(name, lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels))(x)
            case "norm":
                return self.layer(name, lambda: nn.BatchNorm2d(channels))(x)
            case "group_norm":
                return self.layer(name, lambda: nn.GroupNorm(groups, channels))(x)
            case "add":
                return x + y
            case "mul":
                return x * y.sigmoid()
            case "cat":
                return torch.cat([x, y], 1)[:, : max(2, min(24, channels + y.shape[1]))]
            case "split":
                one, other = x.chunk(2, 1)
                return torch.cat([other, one.tanh()], 1)
            case "slice":
                return x[:, 1:]
            case "shuffle":
                return x.unflatten(1, (groups, channels // groups)).transpose(1, 2).flatten(1, 2)
            case "glu":
                return F.glu(torch.cat([x, x.tanh()], 1), 1)
            case "gate":
                return x * self.layer(name, lambda: nn.Linear(channels, channels))(x.mean((2, 3)))[:, :, None, None]
            case "attend":
                heads = x.flatten(2).unflatten(1, (groups, channels // groups))
                return (heads @ (heads.mT @ heads).softmax(-1)).flatten(1, 2).unflatten(2, x.shape[2:])
            case "interleave":
                return x.repeat_interleave(2, 1)[:, :12]
            case "flip":
                return x.flip(1) + y.sum(1, keepdim=True)
            case "pick":
                return x[:, [2, 0, 1, 2]]
            case "pad":
                return F.pad(x, (0, 0, 0, 0, 1, 2))
            case _:
                return self.layer(name, lambda: nn.Linear(channels, step.channels))(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=2, max_size=7))
def test_random_graphs_lose_exactly_what_is_removed(drawn: list[Step]) -> None:
    program = export(Drawn(drawn).double(), image().double())
    structure = analyse(program)
    if not structure.unit_count:
        return
    for removed in removals(structure):
        smaller = remove(program, structure, removed)
        check(program, smaller, structure, removed, [image().double()])
        expect_counts(smaller, structure, removed)
