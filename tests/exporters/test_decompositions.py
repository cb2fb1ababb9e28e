"""Decomposing node by node: what `run_decompositions` gives, and nothing where that is not certain."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import GraphModule

from edgepress.exporters.decompositions import PLAIN, decomposed, nodes_kept, written_out

aten = torch.ops.aten
#: Layers of 4 channels on 8 x 8 that keep their shape.
LAYERS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "softmax": lambda: nn.Softmax(dim=1),
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "norm": lambda: nn.LayerNorm(8),
    "maxima": lambda: nn.MaxPool2d(3, 1, 1),
    "pieces": lambda: Pieces(),
    "squeeze": lambda: Squeeze(),
    "windows": lambda: Windows(),
}
TABLES = {
    "nothing": dict[object, object],
    "core": torch.export.default_decompositions,
    "convolutions": lambda: (
        torch._decomp.get_decompositions([aten.gelu.default])
        | {aten.conv2d.default: lambda x, w, b, *rest: aten.convolution.default(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)}
    ),
}


class Pieces(nn.Module):
    """Operators of several outputs: some stay, some are taken apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        rows = (first * torch.full((1,), 2.0)).unbind(2)
        return torch.cat([torch.stack(rows, 2), second.split([3, 5], -1)[1].repeat_interleave(2, -1)[..., :8]], 1)


class Windows(nn.Module):
    """Four windows of every image become images, change and come back: sizes that are told from the number of elements."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.reshape(x.shape[0], 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 4, 4)
        turned = windows.softmax(-1).transpose(2, 3).reshape(-1, 16)
        return turned.reshape(x.shape[0], 2, 2, 4, -1).permute(0, 3, 1, 2, 4).reshape(x.shape[0], -1, 8, 8)


class Squeeze(nn.Module):
    """Scaled by the means of channels that lie last in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * nn.functional.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1)


class Head(nn.Module):
    """Layers in a row, a residual, and a linear layer."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.body = nn.Sequential(*(LAYERS[kind]() for kind in kinds))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x) + x
        return self.head(y.mean((2, 3))), y[:, :2].flatten(1)


def operators(program: ExportedProgram) -> Counter[str]:
    """How often each is called, but for arithmetic of sizes and what only keeps an order of dimensions in memory, which no file has."""
    nodes = (node for node in program.graph.nodes if node.op == "call_function")
    called = (str(node.target) for node in nodes if not isinstance(node.meta["val"], torch.SymInt))
    return Counter(name for name in called if name != "aten.as_strided.default")


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(
    kinds=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3),
    table=st.sampled_from(sorted(TABLES)),
    free=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gives_the_operators_and_outputs_of_a_whole_decomposition(kinds: list[str], table: str, free: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 4, 8, 8)
    program = export(Head(kinds).eval(), (x,), dynamic_shapes=({0: Dim("batch", min=1)},) if free else None)
    rules = dict(TABLES[table]())
    whole = program.run_decompositions(rules)
    found = decomposed(program, rules)
    assert found is not None
    assert operators(found) == operators(whole)
    assert found.dialect == whole.dialect
    for batch in (x, torch.randn(5, 4, 8, 8)) if free else (x,):
        for one, other in zip(found.module()(batch), whole.module()(batch), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    for node in found.graph.nodes:
        if node.op == "call_function":
            value, described = node.meta["val"], node.meta.get("tensor_meta")
            assert value.shape == described.shape if isinstance(value, torch.Tensor) else not hasattr(described, "shape")


def test_no_size_is_told_from_the_number_of_elements() -> None:
    """No converter counts the elements of a tensor."""
    program = export(Windows(), (torch.randn(2, 4, 8, 8),), dynamic_shapes=({0: Dim("batch", min=1)},))
    found = decomposed(program, {})
    assert found is not None
    assert not any(node.target is aten.sym_numel.default for node in found.graph.nodes)
    for batch in (1, 6):
        x = torch.randn(batch, 4, 8, 8)
        torch.testing.assert_close(found.module()(x), Windows()(x), rtol=0, atol=0)


def test_leaves_the_program_alone() -> None:
    program = export(Head(["conv", "gelu"]).eval(), (torch.randn(2, 4, 8, 8),))
    before = str(program.graph)
    assert decomposed(program, torch.export.default_decompositions()) is not None
    assert str(program.graph) == before


def test_values_after_a_python_function_are_computed_again() -> None:
    """A converter's pass changes a layout and leaves the values of what follows as they were."""
    program = export(nn.Sequential(nn.ReLU(), nn.Sigmoid()), (torch.randn(2, 3, 5),))
    (relu,) = (node for node in program.graph.nodes if node.target is aten.relu.default)
    with program.graph.inserting_before(relu):
        turned = program.graph.call_function(lambda x: x.clone().add_(1).transpose(1, 2), (relu.args[0],))
    relu.replace_input_with(relu.args[0], turned)
    found = decomposed(program, {torch._ops.OperatorBase(): lambda: None})
    assert found is not None
    shapes = {str(node.target): tuple(node.meta["val"].shape) for node in found.graph.nodes if node.op == "call_function"}
    assert shapes["aten.relu.default"] == shapes["aten.sigmoid.default"] == (2, 5, 3)
    assert not any("add_" in name for name in shapes)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(found.module()(x), torch.sigmoid(torch.relu((x + 1).transpose(1, 2))))


class Counting(nn.Module):
    """Writes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x * self.seen


class Resized(nn.Module):
    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, antialias=True, **self.settings)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("to", [{"size": (5, 40)}, {"size": (33, 2)}, {"scale_factor": (0.3, 1.7)}])
def test_resizing_that_skips_no_pixels_becomes_products(to: dict[str, object], corners: bool, mode: str) -> None:
    x = torch.randn(2, 3, 12, 17, generator=torch.Generator().manual_seed(0))
    model = Resized(mode=mode, align_corners=corners, **to)
    found = written_out(export(model, (x,)), PLAIN)
    assert not any("_aa" in str(node.target) for node in found.graph.nodes)
    torch.testing.assert_close(found.module()(x), model(x))


def test_an_output_that_nobody_reads_need_not_be_decomposed() -> None:
    x = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    found = written_out(export(nn.AdaptiveMaxPool1d(7), (x,)), PLAIN)
    assert not any("adaptive" in str(node.target) for node in found.graph.nodes)
    torch.testing.assert_close(found.module()(x), nn.AdaptiveMaxPool1d(7)(x))


def test_leaves_to_torch_what_writes_a_buffer() -> None:
    x = torch.randn(3, 2, 2)
    program = export(Counting().eval(), (x,))
    assert decomposed(program, {}) is None
    with nodes_kept():
        again: GraphModule = program.run_decompositions({}).module()
    torch.testing.assert_close(again(x), x)


def test_leaves_to_torch_what_makes_a_number_of_an_open_size() -> None:
    program = export(nn.ReLU(), (torch.randn(3, 2),), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert decomposed(program, {aten.relu.default: lambda x: x * x.shape[0]}) is not None
    assert decomposed(program, {aten.relu.default: lambda x: x * int(x.shape[0])}) is None


def test_torch_is_itself_again_afterwards() -> None:
    before = ExportedProgram.run_decompositions
    with pytest.raises(KeyError), nodes_kept():
        assert ExportedProgram.run_decompositions is not before
        raise KeyError
    assert ExportedProgram.run_decompositions is before
