"""Products with constants, written as einsum, are linear layers to everything that follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate, float_module, render
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

SIZES = {"b": 5, "n": 6, "m": 4, "d": 8, "h": 2, "k": 3, "f": 10}


class Contraction(nn.Module):
    """einsum of what it is given and a parameter, with the parameter first or last."""

    def __init__(self, equation: str, place: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.equation, self.place = equation, place
        labels = equation.replace(" ", "").split("->")[0].split(",")
        self.weight = nn.Parameter(torch.randn([SIZES[label] for label in labels[place]]))
        self.shape = [SIZES[label] for label in labels[1 - place]]

    def forward(self, x: Tensor) -> Tensor:
        operands = (x, self.weight) if self.place else (self.weight, x)
        return torch.einsum(self.equation, *operands)


def exported(model: Contraction) -> tuple[torch.export.ExportedProgram, Tensor]:
    x = torch.randn(model.shape, generator=torch.Generator().manual_seed(1))
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)), x


@pytest.mark.parametrize("turn", [lambda w: w.T, lambda w: w.t(), lambda w: w.transpose(0, 1), lambda w: w.permute(1, 0)])
def test_a_product_with_the_transpose_of_an_embedding_is_a_linear_layer_of_the_same_weight(turn: Callable[[Tensor], Tensor]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.body = nn.Embedding(200, 32), nn.Linear(32, 32)

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.relu(self.body(self.embedding(tokens))) @ turn(self.embedding.weight)

    model, tokens = Tied().eval(), torch.randint(0, 200, (4, 6))
    module = float_module(torch.export.export(model, (tokens,)))
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert names.count("aten.linear.default") == 2 and not any("matmul" in name or "T" in name for name in names), names
    assert [tuple(tensor.shape) for tensor in module.state_dict().values()].count((200, 32)) == 1
    torch.testing.assert_close(module(tokens), model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("equation", "place"),
    [
        ("bnd,df->bnf", 1),
        ("bnd,fd->bnf", 1),
        ("bnd, dhk -> bnhk", 1),
        ("bnd,dhk->bhnk", 1),
        ("bnhk,hkd->bnd", 1),
        ("bhnk,khd->bnd", 1),
        ("mn,bnd->bmd", 0),
        ("fd,bd->bf", 0),
        ("bnd,nf->bfd", 1),
        ("bnd,df->fbn", 1),
    ],
)
def test_an_einsum_with_a_constant_is_a_linear_layer(equation: str, place: int) -> None:
    program, x = exported(Contraction(equation, place))
    module = float_module(program)
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert names.count("aten.linear.default") == 1 and not any("einsum" in name for name in names)
    for count in (5, 3, 1):
        torch.testing.assert_close(module(x[:count]), program.module()(x[:count]), atol=1e-5, rtol=1e-4)
    rendered = render(program, calibrate(program, [(x,)]), rules_for("onnxruntime"), Scheme("int8", "static")).module(x)
    expected = program.module()(x)
    assert 10 * torch.log10(expected.square().sum() / (rendered - expected).square().sum()) > 30


@pytest.mark.parametrize(
    ("equation", "place"),
    [("bhn,hnd->bhd", 1), ("bnd,n->bnd", 1), ("bn,df->bndf", 1), ("bnd,dk->bk", 1), ("b...d,df->b...f", 1)],
    ids=["one product for every head", "no sum", "an outer product", "a sum that is the data's alone", "an ellipsis"],
)
def test_other_einsums_stay_and_answer_the_same(equation: str, place: int) -> None:
    model = Contraction(equation.replace("...", "n"), place)
    model.equation = equation
    program, x = exported(model)
    module = float_module(program)
    torch.testing.assert_close(module(x[:3]), program.module()(x[:3]), atol=1e-5, rtol=1e-4)
    assert not any(str(node.target) == "aten.linear.default" for node in module.graph.nodes)
