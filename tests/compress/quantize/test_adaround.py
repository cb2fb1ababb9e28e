"""AdaRound: rounding that is learnt keeps what a net answers where coarse rounding to nearest does not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import Statistics, calibrate, render
from edgepress.compress.quantize.adaround import AdaRound
from edgepress.compress.quantize.block_reconstruction import BlockReconstruction
from edgepress.compress.quantize.graph import attribute
from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.learnt_rounding import RoundingOptions
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import outputs_of, program_of, samples_of
from tests.compress.quantize.test_qat import RUNTIMES, Shapes, samples

STATIC = Scheme("int8", "static")
QUICK = AdaRound(0, RoundingOptions(steps=60, lr=0.1))


def four_bits(runtime: str) -> QuantRules:
    return replace(rules_for(runtime), weight_min=-7, weight_max=7, float_groups={})


@cache
def calibrated(name: str) -> Statistics:
    return calibrate(program_of(name), [samples_of(name, 32)])


def refined(name: str, rules: QuantRules, rounding: AdaRound = QUICK) -> tuple[Statistics, Statistics]:
    """Statistics of one of the small nets before and after rounding was learnt."""
    before = calibrated(name)
    return before, refine(program_of(name), before, rules, STATIC, [samples_of(name, 32)], [rounding])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    module = Shapes()
    data = torch.utils.data.TensorDataset(*samples(2000, 1))
    train(module, data, task_loss(), TrainConfig(epochs=8, batch=64, lr=0.1), tmp_path_factory.mktemp("float"))
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module.eval(), (samples(2, 0)[0],), dynamic_shapes=({0: batch},))


@pytest.mark.parametrize("per_channel", [True, False])
def test_four_bits_lose_at_most_half_of_what_rounding_to_nearest_loses(trained: torch.export.ExportedProgram, per_channel: bool) -> None:
    rules = four_bits("onnxruntime") if per_channel else replace(four_bits("onnxruntime"), per_channel=frozenset())
    seen, judged = samples(512, 2)[0], samples(1000, 4)[0]
    nearest = calibrate(trained, [(seen,)])
    learnt = refine(trained, nearest, rules, STATIC, [(seen,)], [AdaRound(0)])

    def error(statistics: Statistics) -> float:
        rendered, exact = (outputs_of(m, (judged,))[0] for m in (render(trained, statistics, rules, STATIC).module, trained.module()))
        return float((rendered - exact).square().mean())

    assert error(learnt) < 0.5 * error(nearest)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["residual", "shuffle", "vision-explicit"])
def test_every_runtime_stores_the_integers_that_were_chosen(name: str, runtime: str) -> None:
    before, after = refined(name, four_bits(runtime))
    rendered, plain = (render(program_of(name), found, four_bits(runtime), STATIC).module for found in (after, before))
    weights = {key.removesuffix(".weight"): value for key, value in after.corrections.items() if key.endswith(".weight")}
    nodes, others = ({node.name: node for node in module.graph.nodes} for module in (rendered, plain))
    assert weights and {key.rpartition(".")[2] for key in after.corrections} == {"weight", "scale"}
    for layer, chosen in weights.items():
        stored, nearest = _dequantized(rendered, nodes[layer]), _dequantized(plain, others[layer])
        assert torch.allclose(stored, torch.from_numpy(chosen), rtol=1e-5, atol=0)
        step = nearest[nearest != 0].abs().min()
        assert not torch.allclose(stored, nearest, atol=0.5 * float(step))


def _dequantized(module: torch.fx.GraphModule, layer: torch.fx.Node) -> Tensor:
    """The stored weight a layer reads, in floats."""
    dequantize = layer.args[1]
    assert isinstance(dequantize, torch.fx.Node) and "dequantize" in str(dequantize.target)

    def fetch(item: object) -> object:
        if not isinstance(item, torch.fx.Node):
            return item
        if item.op == "get_attr":
            return attribute(module, str(item.target))
        return item.target(*map(fetch, item.args), **item.kwargs)  # type: ignore[operator]

    value = fetch(dequantize)
    assert isinstance(value, Tensor)
    return value


def test_integers_move_by_one_at_most_zeros_stay_and_the_ends_are_kept() -> None:
    seen: list[tuple[Layer, Layer]] = []

    def look(layer: Layer) -> Layer:
        weight = layer.grid.weight
        grid = replace(layer.grid, weight=torch.where(weight.abs() < layer.grid.scale, 0.0, weight))
        sparse = replace(layer, grid=grid, rounded=grid.nearest)
        seen.append((sparse, QUICK(sparse)))
        return layer

    refine(program_of("residual"), calibrated("residual"), four_bits("tensorrt"), STATIC, [samples_of("residual", 32)], [look])
    moved = 0
    for before, after in seen:
        steps, integers = before.grid.weight / before.grid.scale, (after.rounded / before.grid.scale).round()
        moved += int((integers != steps.round()).sum())
        assert (integers - steps).abs().max() < 1 + 1e-3 and integers.abs().max() == 7
        assert bool((integers[before.grid.weight == 0] == 0).all()) and bool((before.grid.weight == 0).any())
    assert moved > 0


def test_a_layer_that_learning_does_not_help_keeps_its_rounding() -> None:
    wild = AdaRound(0, RoundingOptions(steps=5, lr=50.0))  # throws every weight to a side at random
    seen: list[bool] = []

    def look(layer: Layer) -> Layer:
        seen.append(wild(layer) is layer)
        return layer

    refine(program_of("residual"), calibrated("residual"), rules_for("tensorrt"), STATIC, [samples_of("residual", 32)], [look])
    assert all(seen) and seen


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = [AdaRound(seed, QUICK.options) for seed in (0, 0, 1)]
    for index, rounding in enumerate(first):
        refined("shuffle", four_bits("litert"), rounding)[1].save(tmp_path / str(index))
    a, b, c = ((tmp_path / str(index)).read_bytes() for index in range(3))
    assert a == b != c


def test_the_activation_that_a_kernel_fuses_is_part_of_what_is_kept() -> None:
    """A channel that ReLU always cuts off may be rounded in any way: the error is taken behind it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        module[0].bias[:3] = -100.0
    inputs = torch.randn(64, 8)
    program = torch.export.export(module, (inputs[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    found: list[tuple[Layer, Layer]] = []

    def look(layer: Layer) -> Layer:
        found.append((layer, QUICK(layer)))
        return layer

    refine(program, calibrate(program, [(inputs,)]), four_bits("tensorrt"), STATIC, [(inputs,)], [look])
    layer, learnt = found[0]

    def errors(which: Layer) -> np.ndarray:
        return (layer.tail(which.answer) - layer.tail(layer.target)).square().mean(0).numpy()

    assert not errors(layer)[:3].any() and not errors(learnt)[:3].any()
    assert errors(learnt).sum() < errors(layer).sum()


def test_algorithms_come_in_one_order_and_unknown_ones_are_refused_with_the_known() -> None:
    assert [type(item).__name__ for item in refiners_of(["bias-correction", "adaround"], 3)] == ["AdaRound", "function"]
    assert refiners_of(["adaround"], 3) == [AdaRound(3)] and refiners_of(["brecq"], 3) == [BlockReconstruction(3)]
    with pytest.raises(QuantizationError, match="unknown algorithm 'adarond'") as caught:
        refiners_of(["adarond"], 0)
    assert "lsq, adaround, gptq, brecq, bias-correction" in str(caught.value)
