"""The program of a graph is what torch.export would make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgepress.compress.quantize import calibrate, render
from edgepress.exporters import programs
from edgepress.exporters.programs import graphs_known, program_of
from edgepress.targets.nouns import Scheme, Signature, TensorSpec
from edgepress.targets.rules import rules_for


class Net(nn.Module):
    """A convolution, sizes that depend on the batch, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 4))
        self.last = nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.convolution(x))
        flat = hidden.reshape(x.shape[0], hidden.shape[1] * 16)
        return self.last(flat) + self.shift, hidden


@pytest.fixture
def rendered() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=(batch,))
    statistics = calibrate(program, [(torch.randn(8, 3, 4, 4),)], observer="minmax")
    return render(program, statistics, rules_for("onnxruntime"), Scheme("int8", "static")).module


@pytest.fixture
def no_tracing(rendered: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(*_: object, **__: object) -> None:
        raise AssertionError("it was traced again")

    monkeypatch.setattr(torch.export, "export", traced)


def same(one: object, other: object) -> bool:
    return all(torch.equal(a, b) for a, b in zip(torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other), strict=True))


@pytest.mark.usefixtures("no_tracing")
def test_a_batch_that_was_open_stays_open(rendered: torch.fx.GraphModule) -> None:
    program = program_of(rendered, (torch.randn(2, 3, 4, 4),), dynamic=True)
    for batch in (1, 2, 40):
        x = torch.randn(batch, 3, 4, 4)
        assert same(program.module(check_guards=False)(x), rendered(x))
    assert all(isinstance(node.meta["val"].shape[0], torch.SymInt) for node in program.graph.output_node().args[0])


@pytest.mark.usefixtures("no_tracing")
def test_fixed_sizes_are_numbers(rendered: torch.fx.GraphModule) -> None:
    x = torch.randn(1, 3, 4, 4)
    program = program_of(rendered, (x,), dynamic=False)
    assert all(isinstance(size, int) for node in program.graph.nodes if "val" in node.meta for size in node.meta["val"].shape)
    assert not [node for node in program.graph.nodes if "sym_size" in str(node.target)]
    assert same(program.module(check_guards=False)(x), rendered(x))


@pytest.mark.usefixtures("no_tracing")
def test_weights_keep_their_names_and_kinds(rendered: torch.fx.GraphModule) -> None:
    program = program_of(rendered, (torch.randn(2, 3, 4, 4),), dynamic=True)
    used = {str(node.target) for node in rendered.graph.nodes if node.op == "get_attr"}
    assert set(program.state_dict) == used
    assert program.graph_signature.user_inputs == ("x",)
    assert "convolution.bias" in program.graph_signature.parameters and "_scale_0" in program.graph_signature.buffers


@pytest.mark.usefixtures("no_tracing")
def test_inputs_and_outputs_take_the_promised_names(rendered: torch.fx.GraphModule) -> None:
    names = Signature((TensorSpec("image", "float32", (None, 3, 4, 4)),), tuple(TensorSpec(n, "float32", (None,)) for n in ("b", "a")))
    x = torch.randn(1, 3, 4, 4)
    outputs = program_of(rendered, (x,), dynamic=False, names=names).module(check_guards=False)(image=x)
    assert list(outputs) == ["b", "a"] and same(tuple(outputs.values()), rendered(x))


def test_what_is_no_graph_is_traced() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 4, 4)
    assert same(program_of(net, (x,), dynamic=False).module()(x), net(x))


def test_an_operator_that_fixes_the_batch_is_left_to_torch(rendered: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    fixing = next(node for node in rendered.graph.nodes if str(node.target) == "aten.relu.default")

    def fixes(x: torch.Tensor) -> torch.Tensor:
        int(x.shape[0])
        return torch.ops.aten.relu.default(x)

    fixing.target = fixes
    rendered.recompile()
    assert programs._lifted(rendered, (torch.randn(2, 3, 4, 4),), True) is None


def test_a_known_graph_is_not_traced_again_by_a_converter(rendered: torch.fx.GraphModule, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 4, 4)
    fixed = program_of(rendered, (x,), dynamic=False).module(check_guards=False)
    traced = torch.export.export
    with graphs_known():
        assert torch.export.export is not traced
        program = torch.export.export(fixed, (x,), strict=False)
    assert torch.export.export is traced
    assert same(program.module()(x), rendered(x))
