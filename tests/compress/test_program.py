"""Reading a stored program: what is held ready for forked processes is given away once, and is the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgepress.compress.program import _ALIASES, hold, load_program, portable


def stored(path: Path, weight: float) -> Path:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
    torch.export.save(torch.export.export(layer, (torch.zeros(2, 1),)), path)
    return path


def weight_of(program: torch.export.ExportedProgram) -> float:
    return float(program.state_dict["weight"].detach())


def test_nobody_sees_what_another_changed(tmp_path: Path) -> None:
    path = stored(tmp_path / "model.pt2", 2.0)
    hold(path)
    first = load_program(path)
    with torch.no_grad():
        first.state_dict["weight"].fill_(7.0)
    assert weight_of(load_program(path)) == 2.0


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    hold(stored(tmp_path / "model.pt2", 2.0))
    stored(tmp_path / "new.pt2", 3.0).replace(tmp_path / "model.pt2")
    assert weight_of(load_program(tmp_path / "model.pt2")) == 3.0


def test_only_the_program_that_was_asked_for_is_given(tmp_path: Path) -> None:
    one, two = stored(tmp_path / "one.pt2", 1.0), stored(tmp_path / "two.pt2", 2.0)
    hold(one)
    hold(two)
    assert (weight_of(load_program(one)), weight_of(load_program(two))) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("pool", "shape", "becomes"),
    [
        (nn.AvgPool2d(320, ceil_mode=True), (2, 3, 2, 4), "mean"),
        (nn.AvgPool2d((5, 2), ceil_mode=True, count_include_pad=False), (2, 3, 4, 2), "mean"),
        (nn.AvgPool1d(9, ceil_mode=True), (2, 3, 7), "mean"),
        (nn.AvgPool2d(2), (2, 3, 2, 2), "avg_pool2d"),
        (nn.AvgPool2d(3, ceil_mode=True), (2, 3, 4, 4), "avg_pool2d"),
        (nn.AvgPool2d(8, padding=1, ceil_mode=True), (2, 3, 6, 6), "avg_pool2d"),
        (nn.AvgPool2d(8, ceil_mode=True, divisor_override=3), (2, 3, 5, 7), "avg_pool2d"),
    ],
)
def test_a_pool_whose_window_exceeds_its_input_becomes_a_mean(pool: nn.Module, shape: tuple[int, ...], becomes: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(nn.Sequential(pool), (x,)))
    assert [node.target._opname for node in program.graph.nodes if node.op == "call_function"] == [becomes]
    torch.testing.assert_close(program.module()(x), pool(x))


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
