"""Cross-layer equalization: exact in float, per-tensor weights survive badly scaled channels, and nothing is made worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.equalize import Equalized
from edgepress.compress.quantize.equalize import equalize as equalized_by
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import NETS, outputs_of, program_of, samples_of

STATIC = Scheme("int8", "static")
PER_TENSOR = replace(rules_for("onnxruntime"), per_channel=frozenset())


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise with ReLUs, pooling, flattening and two linear layers; channels scaled apart by 100."""

    def __init__(self, activation: nn.Module | None = None, late: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU()
        self.late = late
        self.expand, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.depth, self.project = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1)
        self.hidden, self.head = nn.Linear(8 * 9, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 8, 8) -> (batch, 5)."""
        x = self.activation(self.norm(self.expand(x)))
        x = F.pad((self.late or self.activation)(self.depth(x)), (0, 1, 0, 1))
        x = F.max_pool2d(F.relu(self.project(x)), 2)
        return self.head(F.leaky_relu(self.hidden(x.flatten(1)), 0.1))


def exported(module: nn.Module) -> ExportedProgram:
    return torch.export.export(module.eval(), (images(2),), dynamic_shapes=({0: Dim("batch", min=1)},))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def badly_scaled(activation: nn.Module | None = None, late: nn.Module | None = None) -> ExportedProgram:
    """Every output channel multiplied by 2**-3 to 2**3 and taken back by what reads it."""
    torch.manual_seed(0)
    module = Depthwise(activation, late)
    with torch.no_grad():
        for first, second in ((module.expand, module.depth), (module.depth, module.project)):
            factor = torch.logspace(-3, 3, 16, base=2.0)[torch.randperm(16)]
            first.weight.mul_(factor[:, None, None, None])
            assert first.bias is not None
            first.bias.mul_(factor)
            axis = (slice(None), None, None, None) if second is module.depth else (None, slice(None), None, None)
            second.weight.div_(factor[axis])
    return exported(module)


def equalize(program: ExportedProgram, rules: QuantRules = PER_TENSOR) -> Equalized:
    """On 64 samples, for one runtime."""
    return equalized_by(program, [(images(64),)], [rules])


def error(program: ExportedProgram, rules: QuantRules = PER_TENSOR) -> float:
    """Squared error of a rendering, relative to the outputs."""
    statistics = calibrate(program, [(images(64),)])
    inputs = images(128)
    with torch.no_grad():
        exact, rounded = program.module()(inputs), render(program, statistics, rules, STATIC).module(inputs)
    return float((rounded - exact).square().mean() / exact.square().mean())


def test_the_same_function_for_any_batch() -> None:
    program = badly_scaled()
    result = equalize(program)
    assert [second for _, second in result.pairs][:2] == ["depth", "project"]
    for batch in (1, 7):
        with torch.no_grad():
            before, after = program.module()(images(batch)), result.program.module()(images(batch))
        assert (after - before).abs().max() < 1e-5 * before.abs().max()


def test_the_order_of_runtimes_that_round_weights_otherwise_does_not_matter() -> None:
    """Both have 8 bits, and one of them keeps sums within 16 bits: neither stands for the other."""
    rules = [replace(rules_for(runtime), per_channel=frozenset()) for runtime in ("onnxruntime", "litert")]
    one, other = (equalized_by(badly_scaled(), [(images(32),)], order).program.state_dict for order in (rules, rules[::-1]))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_per_tensor_weights_lose_at_most_half_of_what_they_lose_without(bits: int) -> None:
    rules = replace(PER_TENSOR, weight_min=1 - 2 ** (bits - 1), weight_max=2 ** (bits - 1) - 1)
    program = badly_scaled()
    plain, equalized = error(program, rules), error(equalize(program, rules).program, rules)
    assert plain > 1e-4, "the case does not hurt"
    assert equalized < 0.5 * plain


def test_channels_that_little_depends_on_do_not_make_the_others_worse() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3)
    with torch.no_grad():
        first.weight[4:].mul_(0.01)
        first.bias.zero_()
        second.weight[:, 4:].mul_(1e-3)
    program = exported(nn.Sequential(first, nn.ReLU(), second))
    rules = replace(PER_TENSOR, weight_min=-7, weight_max=7)
    assert error(equalize(program, rules).program, rules) <= error(program, rules)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt", "litert"])
def test_a_runtime_with_scales_per_channel_is_not_made_worse(runtime: str) -> None:
    program, rules = badly_scaled(), rules_for(runtime)
    assert error(equalize(program, rules).program, rules) <= 1.05 * error(program, rules)


def test_a_bound_that_nothing_reaches_is_given_up_for_equal_channels() -> None:
    program = badly_scaled(nn.Hardtanh(0.0, 1000.0))
    result = equalize(program)
    assert result.unbounded == ("activation", "activation")
    assert error(result.program) < 0.5 * error(program)


def test_a_bound_that_cuts_values_off_stays() -> None:
    program = badly_scaled(nn.Hardtanh(0.0, 0.5))
    result = equalize(program)
    assert not result.unbounded and "project" not in [second for _, second in result.pairs]


@pytest.mark.parametrize("needed", ["activation", "late"])
def test_a_bound_that_cuts_values_off_does_not_keep_the_others(needed: str) -> None:
    other = "late" if needed == "activation" else "activation"
    program = badly_scaled(**{needed: nn.Hardtanh(0.0, 0.5), other: nn.Hardtanh(0.0, 1000.0)})
    result = equalize(program)
    assert result.unbounded == (other,)
    assert error(result.program) < 0.7 * error(program)


@pytest.mark.parametrize("name", sorted(NETS))
def test_no_graph_shape_changes_its_outputs(name: str) -> None:
    program, inputs = program_of(name), samples_of(name, 5)
    result = equalized_by(program, [samples_of(name, 16)], [PER_TENSOR])
    assert not result.unbounded
    for before, after in zip(outputs_of(program.module(), inputs), outputs_of(result.program.module(), inputs), strict=True):
        assert (after - before).abs().max() < 2e-5 * before.abs().max()


def test_the_same_program_gives_the_same_weights() -> None:
    first, second = (equalize(badly_scaled()).program.state_dict for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_program_without_pairs_is_returned_as_it_is() -> None:
    program = exported(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3)))
    result = equalize(program)
    assert result.pairs == () and result.program is program
