"""What a traced program is rewritten to: the same values, by operators that every runtime has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgepress.compress.portable import _ALIASES, portable
from edgepress.compress.quantize import float_module


@pytest.mark.parametrize(
    ("pool", "shape", "becomes"),
    [
        (nn.AvgPool2d(320, ceil_mode=True), (2, 3, 2, 4), "mean"),
        (nn.AvgPool2d((5, 2), ceil_mode=True, count_include_pad=False), (2, 3, 4, 2), "mean"),
        (nn.AvgPool1d(9, ceil_mode=True), (2, 3, 7), "mean"),
        (nn.AvgPool2d(2), (2, 3, 2, 2), "mean"),
        (nn.AvgPool2d(2), (2, 3, 2, 3), "avg_pool2d"),
        (nn.AvgPool2d(3, ceil_mode=True), (2, 3, 4, 4), "avg_pool2d"),
        (nn.AvgPool2d(8, padding=1, ceil_mode=True), (2, 3, 6, 6), "avg_pool2d"),
    ],
)
def test_a_pool_whose_window_covers_its_input_becomes_a_mean(pool: nn.Module, shape: tuple[int, ...], becomes: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(nn.Sequential(pool), (x,)))
    assert [node.target._opname for node in program.graph.nodes if node.op == "call_function"] == [becomes]
    torch.testing.assert_close(program.module()(x), pool(x))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AvgPool2d(3, 2, 1, divisor_override=5), (2, 3, 8, 9)),
        (nn.AvgPool2d((2, 3), divisor_override=1), (2, 3, 5, 7)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False, divisor_override=4), (2, 3, 6, 8)),
        (nn.AvgPool2d(8, ceil_mode=True, divisor_override=3), (2, 3, 5, 7)),
        (nn.AvgPool3d(2, 1, 1, divisor_override=5), (2, 3, 3, 4, 5)),
    ],
)
def test_a_pool_that_divides_by_a_number_of_its_own_is_a_multiple_of_an_average(pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(nn.Sequential(pool), (x,)))
    (average,) = (node for node in program.graph.nodes if "avg_pool" in str(node.target))
    assert len(average.args) <= 3 and not average.kwargs  # no padding, no window that stands over, no divisor
    torch.testing.assert_close(program.module()(x), pool(x))


@pytest.mark.parametrize("margins", ["same", "valid"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (partial(nn.Conv1d, 2, 4, 4), (3, 2, 9)),
        (partial(nn.Conv2d, 2, 4, (3, 2), dilation=(2, 3), groups=2), (3, 2, 8, 9)),
        (partial(nn.Conv2d, 2, 4, 5, bias=False), (3, 2, 8, 9)),
        (partial(nn.Conv3d, 2, 4, (2, 3, 1)), (1, 2, 4, 5, 6)),
    ],
)
def test_margins_of_convolutions_are_numbers(layer: Callable[..., nn.Module], shape: tuple[int, ...], margins: str) -> None:
    net, x = layer(padding=margins), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(net, (x,)))
    convolutions = [node for node in program.graph.nodes if node.op == "call_function" and "conv" in str(node.target)]
    assert [node.target._overloadname for node in convolutions] == ["default"]
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_softplus_that_is_linear_from_a_lower_number_on_is_chosen_between(beta: float) -> None:
    x = torch.linspace(-4, 4, 42).reshape(2, 21)
    program = portable(torch.export.export(nn.Softplus(beta, threshold=1), (x,)))
    (smooth,) = (node for node in program.graph.nodes if "softplus" in str(node.target))
    assert len(smooth.args) == 2
    torch.testing.assert_close(program.module()(x), nn.Softplus(beta, threshold=1)(x))


def test_second_names_have_the_overloads_and_arguments_of_the_first() -> None:
    for second, first in _ALIASES.items():
        ops = [getattr(torch.ops.aten, name) for name in (second, first)]
        for overload in ops[0].overloads():
            schemas = [getattr(op, overload)._schema for op in ops]
            assert [str(argument.type) for argument in schemas[0].arguments] == [str(argument.type) for argument in schemas[1].arguments]


class SecondNames(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.concat([x.multiply(2.0), torch.clip(x, 0.0, 1.0)], 1)
        return torch.where(torch.greater(joined, 0.5), joined.multiply_(3.0), torch.divide(torch.negative(joined), 2.0))


def test_second_names_become_the_first_with_the_same_values() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(SecondNames(), (x,)))
    names = {node.target._opname for node in program.graph.nodes if node.op == "call_function"}
    assert names == {"cat", "mul", "clamp", "gt", "mul_", "div", "neg", "where"}
    assert torch.equal(program.module()(x), SecondNames()(x))


@pytest.mark.parametrize("whole", [torch.int64, torch.float32])
def test_integers_taken_from_a_float_become_floats_first(whole: torch.dtype) -> None:
    class Hidden(nn.Module):
        def forward(self, mask: torch.Tensor) -> torch.Tensor:
            return (1.0 - mask) * -1e4

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=whole)
    program = portable(torch.export.export(Hidden(), (mask,)))
    conversions = [node for node in program.graph.nodes if node.target is torch.ops.aten.to.dtype]
    assert len(conversions) == (whole is torch.int64)
    assert torch.equal(program.module()(mask), Hidden()(mask))
    torch.export.save(program, buffer := BytesIO())
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(mask), Hidden()(mask))


class Windows(nn.Module):
    """Columns (n, c * kh * kw, windows) -> what the windows of an image (n, c, height, width) sum to."""

    def __init__(self, size: tuple[int, int], window: tuple[int, int], padding: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.told = (size, window, (1, 1), padding, stride)

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        return F.fold(columns, *self.told)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_windows_are_put_side_by_side_without_an_operator_of_their_own(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    size, window, stride, padding = pair(3, 7), pair(1, 3), pair(1, 3), pair(0, 4)
    counts = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, window, stride, strict=True)]
    columns = torch.randn(3, 2 * window[0] * window[1], counts[0] * counts[1])
    model = Windows(size, window, padding, stride)
    program = portable(torch.export.export(model, (columns,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    assert "col2im" not in {node.target._opname for node in program.graph.nodes if node.op == "call_function"}
    torch.testing.assert_close(program.module()(columns[:1]), model(columns[:1]))
    torch.export.save(program, buffer := BytesIO())
    buffer.seek(0)
    torch.testing.assert_close(torch.export.load(buffer).module()(columns), model(columns))


def test_windows_with_a_stride_leave_the_batch_open() -> None:
    columns = torch.randn(3, 18, 16)
    model = Windows((7, 7), (3, 3), padding=(1, 1), stride=(2, 2))
    program = portable(torch.export.export(model, (columns,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    torch.testing.assert_close(program.run_decompositions({}).module()(columns[:1]), model(columns[:1]))


@pytest.mark.parametrize(
    ("margins", "mode", "value", "becomes"),
    [
        ((2, 1, 0, 3), "circular", None, {"slice", "cat"}),
        ((0, 2), "circular", None, {"slice", "cat"}),
        ((-1, -2, 3, -1), "constant", 0.5, {"slice", "constant_pad_nd"}),
        ((-1, 2), "constant", None, {"slice", "constant_pad_nd"}),
        ((-1, 0, 0, -2), "constant", 2.0, {"slice"}),
        ((1, 2), "constant", 0.5, {"pad"}),
        ((1, 2), "reflect", None, {"pad"}),
    ],
)
def test_margins_that_take_from_the_tensor_become_slices(
    margins: tuple[int, ...], mode: str, value: float | None, becomes: set[str]
) -> None:
    class Padded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pad(x, margins, mode, value)

    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    if mode != "constant":
        x = x[:, :, :, 0] if len(margins) == 2 else x
    program = portable(torch.export.export(Padded(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    assert {node.target._opname for node in program.graph.nodes if node.op == "call_function"} == becomes
    assert torch.equal(program.module()(x[:1]), Padded()(x[:1]))
    torch.export.save(program, buffer := BytesIO())
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x), Padded()(x))


class Bags(nn.Module):
    """Bags of rows of a table, with weights where they are given."""

    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bags = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=padding)
        nn.init.normal_(self.bags.weight)  # the padding row too

    def forward(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        return self.bags(rows, per_sample_weights=weights)


@pytest.mark.parametrize(
    ("mode", "padding", "weighted"),
    [("mean", None, False), ("mean", 2, False), ("sum", None, False), ("sum", 2, False), ("sum", 2, True), ("max", None, False)],
)
def test_bags_of_as_many_rows_become_lookups(mode: str, padding: int | None, weighted: bool) -> None:
    model, generator = Bags(mode, padding).eval(), torch.Generator().manual_seed(0)
    rows = torch.randint(0, 9, (6, 5), generator=generator)
    rows[0] = 2  # a bag of padding alone
    inputs = (rows, torch.rand(6, 5, generator=generator)) if weighted else (rows,)
    program = portable(torch.export.export(model, inputs, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)))
    program.graph.lint()
    names = {node.target._opname for node in program.graph.nodes if node.op == "call_function"}
    assert "embedding" in names and not {"embedding_bag", "arange"} & names
    for count in (6, 3, 1):
        some = [each[:count] for each in inputs]
        torch.testing.assert_close(program.module()(*some), model(*some))


def test_bags_of_any_length_and_maxima_beside_padding_stay() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.EmbeddingBag(9, 4)

        def forward(self, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.bags(rows, offsets)

    cases = [(Ragged(), (torch.arange(7), torch.tensor([0, 2, 5]))), (Bags("max", 2), (torch.arange(8).reshape(4, 2),))]
    for model, inputs in cases:
        program = portable(torch.export.export(model.eval(), inputs))
        assert any("embedding_bag" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


class Forms(nn.Module):
    """Bilinear forms of what it is given, at every place of a sequence."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.forms = nn.Bilinear(12, 7, 5, bias=bias)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.forms(x, z)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bilinear_form_is_a_linear_layer_of_one_of_its_inputs(bias: bool) -> None:
    model, x, z = Forms(bias).eval(), torch.randn(3, 4, 12), torch.randn(3, 4, 7)
    batch = {0: torch.export.Dim("n", min=1)}
    program = portable(torch.export.export(model, (x, z), dynamic_shapes=(batch, batch)))
    assert "bilinear" not in {node.target._opname for node in program.graph.nodes if node.op == "call_function"}
    torch.testing.assert_close(program.module()(x[:1], z[:1]), model(x[:1], z[:1]))
    module = float_module(program)
    weights = [tensor.shape for _, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.dim() == 2]
    assert weights == [(35, 12)]
    torch.testing.assert_close(module(x, z), model(x, z))


@pytest.mark.parametrize("power", [1.0, 2.0, float("inf"), 3.0])
@pytest.mark.parametrize("rows", [5, 40])
def test_distances_are_differences_or_products(power: float, rows: int) -> None:
    class Distances(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, y, power)

    x, y, batch = torch.randn(3, 7, 6), torch.randn(3, rows, 6), {0: torch.export.Dim("n", min=1)}
    program = portable(torch.export.export(Distances(), (x, y), dynamic_shapes=(batch, batch)))
    names = {node.target._opname for node in program.graph.nodes if node.op == "call_function"}
    assert any("cdist" in name for name in names) == (power == 3) and ("matmul" in names) == (power == 2 and rows == 40)
    torch.testing.assert_close(program.module()(x[:1], y[:1]), Distances()(x[:1], y[:1]), atol=1e-4, rtol=1e-4)
