"""What algorithms lose on padding they do not make good at the expense of what the outputs depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import gradients
from edgepress.compress.quantize.bias_correction import correct_bias
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.position_weights import weigh_positions
from edgepress.compress.quantize.prepare import canonical_module
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for
from tests.compress.quantize.nets import program_of, samples_of
from tests.compress.quantize.test_gptq import refined
from tests.compress.quantize.test_layerwise import calibrated


def _layers(module: torch.fx.GraphModule) -> dict[str, int]:
    return {node.name: node.meta["val"].dim() - 1 for node in module.graph.nodes if node.name.startswith("linear")}


def test_padding_weighs_nothing_and_every_sample_the_same() -> None:
    module, (ids, mask) = canonical_module(program_of("sentence-sdpa")), samples_of("sentence-sdpa", 20)
    found = weigh_positions(module, (ids, mask), _layers(module))
    value = found["linear_2"]  # of the first block: what padding holds is masked
    assert value.shape == (20, 12) and not value[mask == 0].any() and bool((value[mask == 1] > 0).all())
    torch.testing.assert_close(value.mean(dim=1), torch.ones(20))
    assert not found["linear_11"][:, 1:].any()  # of the last block: the first token alone is read after it


def test_a_position_weighs_the_square_of_its_gradient() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x) * torch.tensor([1.0, 2.0, 4.0])[:, None]).sum((1, 2))[:, None]

    inputs = (torch.randn(6, 3, 4),)
    module = canonical_module(torch.export.export(Model().eval(), inputs))
    found = weigh_positions(module, inputs, {"linear": 2})
    torch.testing.assert_close(found["linear"], torch.tensor([1.0, 4.0, 16.0]).expand(6, 3) / 7)


def test_samples_stand_second_where_tokens_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer = self.linear(x.transpose(0, 1)) * x.mean(2).t()[..., None]
            return answer.sum((0, 2))[:, None]

    x = torch.randn(7, 3, 4)
    program = torch.export.export(Model().eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    monkeypatch.setattr(gradients, "_ELEMENTS", 0)  # sample by sample: batches would otherwise be put together along tokens
    found = weigh_positions(canonical_module(program), (x,), {"linear": 2})["linear"]
    squares = x.mean(2).t().square()
    torch.testing.assert_close(found, squares / squares.mean(dim=0))


@pytest.mark.parametrize("refiner", [gptq, correct_bias])
@pytest.mark.parametrize("name", ["linear", "convolution", "grouped", "strided"])
def test_samples_that_weigh_nothing_are_as_good_as_absent(name: str, refiner: Callable[[Layer], Layer]) -> None:
    layer, _ = refined(name)[0]
    half = len(layer.target) // 2
    shape = list(layer.target.shape)
    del shape[layer.channels]
    weights = torch.ones(shape)
    weights[half:] = 0
    ignoring = refiner(replace(layer, weights=weights * 2))
    absent = refiner(replace(layer, inputs=layer.inputs[:half], target=layer.target[:half], weights=None))
    full = refiner(replace(layer, weights=None))
    if refiner is gptq:
        assert torch.equal(ignoring.rounded, absent.rounded) and not torch.equal(ignoring.rounded, full.rounded)
    else:
        assert ignoring.bias is not None and absent.bias is not None and full.bias is not None
        torch.testing.assert_close(ignoring.bias, absent.bias)
        assert (full.bias - absent.bias).abs().max() > 1e-5


def test_bias_correction_takes_what_padding_answers_for_nothing() -> None:
    program, statistics, (ids, mask) = program_of("sentence-sdpa"), calibrated("sentence-sdpa"), samples_of("sentence-sdpa", 32)
    rules, scheme = replace(rules_for("onnxruntime"), float_groups={}), Scheme("int8", "static")
    other = torch.where(mask == 1, ids, 50 - ids)  # other tokens where nobody looks
    one, two = (refine(program, statistics, rules, scheme, [(item, mask)], [correct_bias]).corrections for item in (ids, other))
    for name in ("linear_2.bias", "linear_3.bias", "linear_5.bias"):
        torch.testing.assert_close(torch.from_numpy(one[name]), torch.from_numpy(two[name]))


def test_where_gradients_cannot_be_taken_positions_count_alike() -> None:
    @torch.library.custom_op("edgepress_test::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    doubled.register_fake(torch.empty_like)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return doubled(self.linear(x))

    inputs = (torch.randn(6, 4),)
    module = canonical_module(torch.export.export(Model().eval(), inputs))
    with pytest.warns(UserWarning, match="algorithms count all positions of a layer alike.*doubled"):
        assert not weigh_positions(module, inputs, {"linear": 1})
