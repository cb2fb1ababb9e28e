"""A pruned model as the user's own class."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.project.outputs import flatten, largest_error
from edgepress.compress.project.trace import trace_model
from edgepress.compress.project.usercode import load_callable
from edgepress.compress.prune import Structure, analyse, remove
from edgepress.compress.prune.user_class import Rebuilt, rebuild
from edgepress.compress.train import to_program, trainable
from tests.compress.prune.class_nets import Encoder, Gated, GroupedQueries, Ladder, Recurrent, ResidualNet, Shuffled, Tied, written

CASES = Path(os.environ.get("EDGEPRESS_CASES", Path(__file__).parents[4] / "shared" / "cases")).absolute()
IMAGES = [torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
SEQUENCES = [torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))]


@dataclass
class Pruned:
    structure: Structure
    removed: np.ndarray
    smaller: ExportedProgram
    inputs: list[Tensor]

    def rebuild(self, model: nn.Module) -> Rebuilt:
        return rebuild(model, self.smaller, self.structure, self.removed, self.inputs)


def choose(structure: Structure, share: float, kinds: Collection[str] = (), seed: int = 0) -> np.ndarray:
    """A share of every family of these kinds (of all, by default) at random."""
    removed = np.zeros(structure.unit_count, dtype=bool)
    rng = np.random.default_rng(seed)
    for family in structure.families:
        if not kinds or family.kind in kinds:
            removed[rng.permutation(family.units)[: int(len(family.units) * share)]] = True
    assert removed.any() and structure.smallest(removed) > 0
    return removed


def prune(make: Callable[[], nn.Module], inputs: list[Tensor], share: float = 0.5, kinds: Collection[str] = ()) -> Pruned:
    torch.manual_seed(1)
    model = make().eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2.0)
    program = trace_model(model, [tensor.numpy() for tensor in inputs], Path()).program
    structure = analyse(program)
    removed = choose(structure, share, kinds)
    return Pruned(structure, removed, remove(program, structure, removed), inputs)


def rebuilt(make: Callable[[], nn.Module], pruned: Pruned) -> Rebuilt:
    """Rebuild with other initial weights, and check everything that must hold of a module that comes out."""
    torch.manual_seed(2)
    result = pruned.rebuild(make())
    assert result.module is not None, result.why
    assert result.why == "" and json.loads(json.dumps(result.attributes)) == result.attributes
    assert not result.module.training and all(p.grad is None for p in result.module.parameters())
    assert sum(p.numel() for p in result.module.parameters()) == pruned.structure.parameters(pruned.removed)
    for batch in (1, 2, 3):
        inputs = [tensor[:batch] for tensor in pruned.inputs]
        assert error(result.module, pruned.smaller.module(), inputs) < 1e-4
    return result


def error(model: nn.Module, other: nn.Module, inputs: list[Tensor]) -> float:
    with torch.no_grad():
        return largest_error(flatten(model(*inputs)), flatten(other(*inputs)))


def state(model: nn.Module) -> dict[str, Any]:
    return {path: {name: repr(value) for name, value in vars(part).items()} for path, part in model.named_modules()} | {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }


def test_layers_of_a_residual_net_say_their_new_sizes() -> None:
    pruned = prune(ResidualNet, IMAGES)
    result = rebuilt(ResidualNet, pruned)
    net: Any = result.module
    assert net.stages[0].conv1.out_channels == net.stages[0].bn1.num_features == 4
    assert result.attributes["head"] == {"in_features": 8}


def test_a_rebuilt_class_trains_switches_modes_and_exports_again() -> None:
    net = rebuilt(ResidualNet, prune(ResidualNet, IMAGES)).module
    assert net is not None
    net.train()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    first, second = net(*IMAGES), net(*IMAGES)
    assert not torch.equal(first, second)
    first.sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert all(not torch.equal(before[name], net.state_dict()[name]) for name in ("stem.weight", "stages.0.bn1.running_mean"))
    net.eval()
    program = torch.export.export(net, tuple(IMAGES))
    assert error(program.module(), net, IMAGES) < 1e-5


def test_groups_follow_in_layers_and_in_the_users_attribute() -> None:
    pruned = prune(Shuffled, IMAGES, kinds={"groups"})
    net: Any = rebuilt(Shuffled, pruned).module
    assert net.groups == net.first.groups == net.second.groups == net.norm.num_groups == net.up.groups == 2
    assert net.depthwise.groups == net.depthwise.in_channels == net.norm.num_channels == net.first.in_channels


def test_heads_and_head_sizes_of_attention_follow() -> None:
    pruned = prune(Ladder, SEQUENCES)
    result = rebuilt(Ladder, pruned)
    assert result.attributes["blocks.0"] == {"num_heads": 4, "head_dim": 2}
    assert result.attributes["blocks.1.qkv"] == {"out_features": 24}


def test_attributes_that_only_happen_to_equal_a_size_stay() -> None:
    net: Any = rebuilt(Ladder, prune(Ladder, SEQUENCES)).module
    assert net.classes == net.head.out_features == 8


def test_layers_may_keep_different_numbers_of_heads() -> None:
    pruned = prune(Ladder, SEQUENCES, kinds={"heads"})
    family = next(f for f in pruned.structure.families if f.kind == "heads" and f.name.startswith("blocks.1"))
    pruned.removed[list(family.units)] = [True] * 7 + [False]
    torch.manual_seed(1)
    program = trace_model(Ladder().eval(), [tensor.numpy() for tensor in SEQUENCES], Path()).program
    pruned.smaller = remove(program, pruned.structure, pruned.removed)
    result = rebuilt(Ladder, pruned)
    assert result.attributes["blocks.0"] == {"num_heads": 4}
    assert result.attributes["blocks.1"] == {"num_heads": 1}


def test_grouped_queries_keep_the_product_of_their_counts() -> None:
    net: Any = rebuilt(GroupedQueries, prune(GroupedQueries, SEQUENCES)).module
    assert (net.heads, net.kv_heads, net.repeats, net.size) == (2, 2, 1, 4)


def test_tuples_plain_tensors_and_hidden_buffers_follow() -> None:
    inputs = [tensor[:, 0] for tensor in SEQUENCES]
    net: Any = rebuilt(Gated, prune(Gated, inputs)).module
    assert net.sizes == (6, 10) and net.unfold.unflattened_size == (3, 2, 2)
    assert net.factors.shape == (6,) and net.shift.shape == (10,)


def test_tied_weights_stay_one_tensor() -> None:
    net: Any = rebuilt(Tied, prune(Tied, [torch.arange(12).reshape(3, 4)])).module
    assert net.out.weight is net.embed.weight
    assert net.embed.embedding_dim == net.out.in_features == net.embed.weight.shape[1]
    assert net.mix[0].out_features == 12


def test_tied_weights_take_what_training_the_graph_made_of_them() -> None:
    inputs = [torch.arange(12).reshape(3, 4)]
    program = trace_model(Tied().eval(), [tensor.numpy() for tensor in inputs], Path()).program
    module = trainable(program)
    module(*inputs).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    trained = to_program(module, program)
    structure = analyse(program)
    result = rebuild(Tied(), trained, structure, np.zeros(structure.unit_count, dtype=bool), inputs)
    assert result.module is not None, result.why
    assert error(result.module, trained.module(), inputs) < 1e-5
    assert error(result.module, program.module(), inputs) > 1e-3


def test_recurrent_layers_say_their_hidden_size() -> None:
    result = rebuilt(Recurrent, prune(Recurrent, SEQUENCES))
    assert result.attributes["rnn"] == {"hidden_size": 6}


def test_neurons_of_torchs_transformer_layer_go_and_outputs_may_be_a_dictionary() -> None:
    result = rebuilt(Encoder, prune(Encoder, SEQUENCES, kinds={"neurons"}))
    assert result.attributes == {"layer.linear1": {"out_features": 32}, "layer.linear2": {"in_features": 32}}


def test_multihead_attention_that_its_class_cannot_express_is_named() -> None:
    result = prune(Encoder, SEQUENCES, kinds={"heads"}).rebuild(Encoder())
    assert result.module is None
    assert "nn.MultiheadAttention layer.self_attn" in result.why and "in 2 heads" in result.why


def test_sizes_written_in_the_code_are_found_and_the_model_is_left_as_it_was() -> None:
    pruned = prune(written, SEQUENCES, kinds={"heads"})
    model = written()
    before = state(model)
    result = pruned.rebuild(model)
    assert result.module is None and result.attributes == {}
    assert result.why.startswith("forward() of blocks.0 does not follow the smaller sizes: shape '[1, 5, 3, 8, 4]'")
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name] for name, value in before.items())


def test_units_removed_in_several_steps_are_counted_in_the_smaller_program() -> None:
    first = prune(Ladder, SEQUENCES, 0.25)
    structure = analyse(first.smaller)
    twice = remove(first.smaller, structure, choose(structure, 0.5))
    result = rebuild(Ladder(), twice, first.structure, None, SEQUENCES)
    assert result.module is not None, result.why
    assert result.attributes["blocks.0"] == {"num_heads": 3, "head_dim": 2}
    assert error(result.module, twice.module(), SEQUENCES) < 1e-4


def test_another_class_is_refused_by_the_name_that_differs() -> None:
    result = prune(ResidualNet, IMAGES).rebuild(Shuffled())
    assert result.module is None and "'stages.0.conv1.weight'" in result.why


def test_a_class_that_computes_with_an_old_size_is_told_by_its_outputs() -> None:
    class Scaled(ResidualNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stages(torch.relu(self.stem(x))).mean((2, 3))
            return self.head(y) * (1.0 if y.shape[1] == 16 else 2.0)

    result = prune(Scaled, IMAGES).rebuild(Scaled())
    assert result.module is None and "outputs differ by" in result.why


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bert_follows_in_heads_and_their_sizes(implementation: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=16
    )

    def make() -> nn.Module:
        return transformers.AutoModelForSequenceClassification.from_config(copy.deepcopy(config), attn_implementation=implementation)  # type: ignore[no-any-return]

    inputs = [torch.arange(18).reshape(3, 6) % 40, torch.ones(3, 6, dtype=torch.int64)]
    result = rebuilt(make, prune(make, inputs))
    wanted = {"num_attention_heads": 2, "attention_head_size": 4, "all_head_size": 8}
    assert result.attributes["bert.encoder.layer.0.attention.self"] == wanted


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the real cases are not at {CASES} (EDGEPRESS_CASES)")
@pytest.mark.parametrize("symmetric", [True, False])
def test_padded_shortcuts_fit_the_class_where_both_sides_lose_the_same(symmetric: bool) -> None:
    make = load_callable("model:resnet20", CASES / "cifar10")
    images = [torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    pruned = prune(make, images)
    pruned.removed[:] = False
    remaining: Mapping[str, Any] = {f.name: f for f in pruned.structure.families}
    for family in remaining.values():
        lost = family.units[len(family.units) // 2 :] if "conv1" in family.name and family.name != "conv1" else ()
        pruned.removed[list(lost)] = True
    if not symmetric:
        pruned.removed = choose(pruned.structure, 0.5)
    torch.manual_seed(1)
    program = trace_model(make().eval(), [tensor.numpy() for tensor in images], Path()).program
    pruned.smaller = remove(program, pruned.structure, pruned.removed)
    if symmetric:
        rebuilt(make, pruned)
    else:
        assert pruned.rebuild(make()).why.startswith("forward() of layer2.0 does not follow")
    sys.path.remove(str(CASES / "cifar10"))
