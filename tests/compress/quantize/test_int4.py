from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.quantize import Int4Options, quantize_int4, render_int4
from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.int4_gptq import gptq
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.int4_layers import find_layers
from edgepress.compress.quantize.int4_moments import second_moments
from edgepress.compress.quantize.int4_op import int4_layers
from edgepress.compress.quantize.prepare import float_module
from edgepress.targets.errors import QuantizationError
from edgepress.targets.rules import Int4Rules, rules_for
from tests.compress.quantize.decoder import decoder, exported, tokens

ASYMMETRIC, SYMMETRIC = Int4Rules(), Int4Rules(symmetric=True, groups=(32, 64), rows=True)


def calibration() -> Iterable[tuple[Tensor]]:
    return [(tokens(16, seed),) for seed in (1, 2, 3, 4)]


def output_error(rules: Int4Rules, method: str, group: int) -> float:
    """Squared error of the decoder's outputs on sentences apart from calibration, as a share of their square."""
    result = quantize_int4(decoder(), Int4Options(rules, method, group), calibration)
    with torch.no_grad():
        got, wanted = (program.module()(tokens(64, 9)) for program in (result.program, decoder()))
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("rules", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [32, 64])
def test_gptq_and_awq_lose_less_of_a_decoder_than_rounding_to_nearest(rules: Int4Rules, group: int) -> None:
    plain = output_error(rules, "rtn", group)
    assert 0.001 < plain < 0.1
    assert output_error(rules, "gptq", group) < 0.6 * plain
    assert output_error(rules, "awq", group) < 0.9 * plain


def test_awq_changes_nothing_in_float_and_multiplies_at_run_time_only_where_no_weight_can_take_the_scale() -> None:
    result = quantize_int4(decoder(), Int4Options(ASYMMETRIC, "awq", 32), calibration)
    plain = quantize_int4(decoder(), Int4Options(ASYMMETRIC, "rtn", 32))
    products, before = (sum(op_name(node) == "mul" for node in each.program.graph.nodes) for each in (result, plain))
    attention_outputs = 2  # what their projections read comes from no op with weights of its own
    assert before <= products <= before + attention_outputs
    norm = next(name for name in result.program.state_dict if name.endswith("norm1.weight"))
    assert not torch.allclose(result.program.state_dict[norm], decoder().state_dict[norm])


def test_the_grid_that_loses_least_is_found() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 9.0  # an outlier that widens its group's range
    importance = torch.ones(64)
    importance[3] = 1e-4

    def lost(**options: object) -> float:
        rounded = search_grid(weight, 32, False, **options).rounded(weight).dequantized()  # type: ignore[arg-type]
        return float(((rounded - weight).square() * importance).sum())

    assert lost(importance=importance) < 0.7 * lost(clip=False)
    assert lost(importance=importance) <= lost()


@pytest.mark.parametrize(("symmetric", "low", "high"), [(True, -7, 7), (False, -7, 8), (False, -2, 13), (False, 0, 15)])
def test_a_weight_on_the_grid_comes_back_as_it_was(symmetric: bool, low: int, high: int) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(low, high + 1, (6, 2, 16), generator=generator).float()
    steps[..., 0], steps[..., 1] = low, high
    weight = (steps * (0.1 + torch.rand(6, 2, 1, generator=generator))).reshape(6, 32)
    result = search_grid(weight, 16, symmetric).rounded(weight)
    torch.testing.assert_close(result.dequantized(), weight)
    assert bool((result.zero == (8 if symmetric else -low)).all())


def test_gptq_copes_with_inputs_that_never_vary_or_are_always_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 64, generator=generator), torch.randn(32, 64, generator=generator)
    x[:, :20], x[:, 20:40] = 0.0, x[:, 20:21]
    moments = x.T @ x / len(x)
    grid = search_grid(weight, 32, False, moments.diagonal())
    better, plain = (weight - w.dequantized() for w in (gptq(weight, moments, grid), grid.rounded(weight)))
    assert float((better @ moments * better).sum()) < 0.5 * float((plain @ moments * plain).sum())


def test_moments_are_those_of_all_rows_however_little_memory_there_is() -> None:
    module = float_module(decoder())
    sources = list(dict.fromkeys(layer.source for layer in find_layers(module, ASYMMETRIC, 32)))
    passes: list[int] = []

    def counted() -> Iterable[tuple[Tensor]]:
        passes.append(1)
        return calibration()

    whole = dict(second_moments(module, sources, counted))
    assert len(passes) == 1
    pieces = dict(second_moments(module, sources, counted, limit_bytes=1))
    assert len(passes) == 1 + len(sources)
    for node, matrix in whole.items():
        torch.testing.assert_close(pieces[node], matrix)
        assert float(torch.linalg.eigvalsh(matrix.double()).min()) > -1e-4 * float(matrix.diagonal().max())


class Mixed(nn.Module):
    """A convolution, widths that no group or only a small one divides, a product with a constant, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv1d(48, 48, 1), nn.Embedding(10, 48)
        self.a, self.b, self.factor = nn.Linear(48, 50), nn.Linear(50, 64), nn.Parameter(torch.randn(64, 4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).transpose(1, 2)).transpose(1, 2)
        return torch.matmul(F.relu(self.b(self.a(x))), self.factor)


def mixed() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return exported(Mixed(), torch.randint(0, 10, (2, 5)))


def test_a_group_that_does_not_divide_a_row_gives_way_to_one_that_does(tmp_path: Path) -> None:
    result = quantize_int4(mixed(), Int4Options(ASYMMETRIC, "rtn", 32))
    assert sorted(result.groups.values()) == [16, 32]
    torch.export.save(result.program, tmp_path / "model.pt2")
    rendered = render_int4(tmp_path / "model.pt2", rules_for("onnxruntime"))
    reasons = {line["op"]: line["reason"] for line in rendered.float_ops}
    assert reasons["aten.linear"] == "its 50 inputs do not divide into groups of 16, 32, 64, 128, 256"
    assert "convolutions" in str(reasons["aten.conv1d"]) and "looked up" in str(reasons["aten.embedding"])
    assert [weight.group for _, weight in int4_layers(rendered.module)] == [16, 32]


def test_a_kernel_with_scales_per_row_takes_what_no_group_divides() -> None:
    result = quantize_int4(mixed(), Int4Options(SYMMETRIC, "rtn", 32))
    assert sorted(result.groups.values()) == [32, 48, 50]


def test_a_tied_weight_stays_float_where_it_is_looked_up() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 32), nn.Linear(32, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    program = exported(Tied(), torch.randint(0, 10, (2, 5)))
    batches = [(torch.randint(0, 10, (8, 5), generator=torch.Generator().manual_seed(0)),)]
    for method in ("rtn", "gptq", "awq"):
        result = quantize_int4(program, Int4Options(ASYMMETRIC, method, 32), lambda: batches)
        with torch.no_grad():
            got, wanted = (each.module()(batches[0][0]) for each in (result.program, program))
        assert 0 < float((got - wanted).abs().max()) < 0.2 * float(wanted.abs().max())


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(QuantizationError, match=r"unknown method 'gtpq'.*Use one of rtn, gptq, awq"):
        Int4Options(ASYMMETRIC, "gtpq")
    with pytest.raises(QuantizationError, match=r"groups of 48 are not known. Use one of 16, 32"):
        Int4Options(ASYMMETRIC, "rtn", 48)
    with pytest.raises(QuantizationError, match=r"'gptq' needs calibration samples"):
        quantize_int4(decoder(), Int4Options(ASYMMETRIC))
    with pytest.raises(QuantizationError, match="calibration got no samples"):
        quantize_int4(decoder(), Int4Options(ASYMMETRIC), lambda: [])
    convolution = exported(nn.Conv1d(4, 4, 1), torch.randn(2, 4, 5))
    with pytest.raises(QuantizationError, match=r"nothing to store in 4 bits.*Ask for precision int8-weights"):
        quantize_int4(convolution, Int4Options(ASYMMETRIC, "rtn"))


def test_weights_and_inputs_that_are_not_finite_are_named() -> None:
    layer = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    program = exported(layer, torch.randn(2, 32))
    with pytest.raises(QuantizationError, match=r"'\w+' produced during calibration is not finite"):
        quantize_int4(program, Int4Options(ASYMMETRIC), lambda: [(torch.full((2, 32), 3e38),)])
    with torch.no_grad():
        layer[1].weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="the weight of layer '1' is not finite"):
        quantize_int4(exported(layer, torch.randn(2, 32)), Int4Options(ASYMMETRIC, "rtn"))
