from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.prune import Structure, analyse, check, masked_outputs, remove
from edgepress.compress.prune.labels import PINNED, Labels
from edgepress.targets.errors import PruneError

from .nets import Head, conv, image
from .proof import export


def small() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.Dropout(0.5), conv(8, 6), Head(6))


def nothing(structure: Structure) -> np.ndarray:
    return np.zeros(structure.unit_count, dtype=bool)


def test_families_name_their_layers_and_number_units_by_index() -> None:
    structure = analyse(export(small(), image()))
    first, second = structure.families
    assert (first.name, first.layers, first.units) == ("0.0", ("0.0", "0.1", "2.0"), tuple(range(8)))
    assert (second.name, second.layers, second.units) == ("2.0", ("2.0", "2.1", "3.fc"), tuple(range(8, 14)))


def test_footprints_say_where_a_unit_acts_and_as_what() -> None:
    structure = analyse(export(small(), image()))
    roles = {(f.tensor, f.dim): f.role for f in structure.footprints}
    assert roles["0.0.weight", 0] == "out"
    assert roles["2.0.weight", 1] == "in"
    assert roles["0.1.weight", 0] == roles["0.1.running_var", 0] == "norm"
    assert roles["3.fc.weight", 1] == "in"
    reader = next(f for f in structure.footprints if (f.tensor, f.dim) == ("2.0.weight", 1))
    assert reader.index.tolist() == reader.unit.tolist() == list(range(8))


def test_keeps_lists_the_indices_left_of_every_tensor_that_shrinks() -> None:
    structure = analyse(export(small(), image()))
    removed = nothing(structure)
    removed[[1, 3]] = True
    keeps = structure.keeps(removed)
    assert set(keeps) == {"0.0.weight", "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var", "2.0.weight"}
    assert keeps["0.0.weight"][0].tolist() == [0, 2, 4, 5, 6, 7]  # type: ignore[union-attr]
    assert keeps["0.0.weight"][1:] == (None, None, None)


def test_activations_say_which_unit_stands_at_which_index_of_a_node() -> None:
    structure = analyse(export(small(), image()))
    batch, channels, _, _ = structure.activations("conv2d_1")
    assert len(batch[0]) == 0
    assert (channels[0].tolist(), channels[1].tolist()) == (list(range(6)), list(range(8, 14)))
    with pytest.raises(PruneError, match="'conv2d_9' has no labelled output"):
        structure.activations("conv2d_9")


def test_activations_of_a_flattened_node_list_every_position_of_a_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    _, (index, unit) = analyse(export(net, image())).activations("flatten")
    assert (index.tolist(), unit.tolist()) == (list(range(16)), [k // 4 for k in range(16)])


def test_costs_per_layer_add_up() -> None:
    structure = analyse(export(small(), image()))
    removed = nothing(structure)
    assert dict(structure.layer_macs(removed)) == {"conv2d": 64 * 8 * 27, "conv2d_1": 64 * 6 * 72, "linear": 24}
    removed[:4] = True
    assert dict(structure.layer_macs(removed)) == {"conv2d": 64 * 4 * 27, "conv2d_1": 64 * 6 * 36, "linear": 24}
    assert structure.macs(removed) == 64 * 4 * 27 + 64 * 6 * 36 + 24


def test_a_removal_that_empties_a_layer_is_refused() -> None:
    program = export(small(), image())
    structure = analyse(program)
    removed = nothing(structure)
    removed[:8] = True
    assert structure.smallest(removed) == 0
    with pytest.raises(PruneError, match="leaves nothing of a layer"):
        remove(program, structure, removed)


@pytest.mark.parametrize("removed", [np.zeros(3, dtype=bool), np.zeros(14, dtype=np.int64)])
def test_a_removal_of_another_length_or_dtype_is_refused(removed: np.ndarray) -> None:
    structure = analyse(export(small(), image()))
    with pytest.raises(PruneError, match="14 units"):
        structure.macs(removed)


def test_the_program_of_another_model_is_refused() -> None:
    structure = analyse(export(nn.Sequential(small(), nn.GLU(), nn.Unflatten(1, (2, 1))), image()))
    with pytest.raises(PruneError, match="no node"):
        remove(export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 2)), image()), structure, nothing(structure))


def test_the_smaller_program_keeps_names_and_modes_and_leaves_the_original_alone() -> None:
    program = export(small(), image())
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    structure = analyse(program)
    removed = nothing(structure)
    removed[::2] = True
    smaller = remove(program, structure, removed)
    assert list(smaller.state_dict) == list(before)
    assert [n.name for n in smaller.graph.nodes] == [n.name for n in program.graph.nodes]
    assert [str(n.target) for n in smaller.graph.nodes] == [str(n.target) for n in program.graph.nodes]
    assert smaller.graph_signature.user_inputs == program.graph_signature.user_inputs
    for name, parameter in smaller.named_parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
        assert torch.equal(program.state_dict[name], before[name])


def test_nothing_removed_gives_an_equal_program() -> None:
    program = export(small(), image())
    structure = analyse(program)
    same = remove(program, structure, nothing(structure))
    assert torch.equal(same.module()(image()), program.module()(image()))


def test_a_smaller_program_is_saved_loaded_pruned_again_and_takes_other_weights() -> None:
    program = export(small(), image())
    structure = analyse(program)
    removed = nothing(structure)
    removed[[0, 9]] = True
    smaller = remove(program, structure, removed)
    buffer = io.BytesIO()
    torch.export.save(smaller, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    assert torch.equal(loaded.module()(image()), smaller.module()(image()))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(0.5)
    again = analyse(loaded)
    assert again.unit_count == structure.unit_count - 2
    half = nothing(again)
    half[::2] = True
    check(loaded, remove(loaded, again, half), again, half, [image()])


def test_the_batch_stays_dynamic_and_no_new_condition_is_put_on_it() -> None:
    program = export(small(), image())
    structure = analyse(program)
    removed = nothing(structure)
    removed[0] = True
    smaller = remove(program, structure, removed)
    for candidate in (smaller, program):
        assert candidate.module()(image().repeat(20, 1, 1, 1)).shape == (40, 4)
        assert str(candidate.range_constraints) == str(program.range_constraints)


def test_a_fixed_batch_stays_fixed() -> None:
    net = small().eval()
    program = torch.export.export(net, (image(),))
    structure = analyse(program)
    removed = nothing(structure)
    removed[0] = True
    check(program, remove(program, structure, removed), structure, removed, [image()])


def test_a_program_computed_wrongly_is_caught() -> None:
    program = export(small(), image())
    structure = analyse(program)
    removed, other = nothing(structure), nothing(structure)
    removed[0], other[1] = True, True
    with pytest.raises(PruneError, match="is off by"):
        check(program, remove(program, structure, other), structure, removed, [image()])


def test_masking_nothing_is_the_original() -> None:
    program = export(small(), image())
    structure = analyse(program)
    (output,) = masked_outputs(program, structure, nothing(structure), [image()])
    assert torch.allclose(output, program.module()(image()))


class Between(nn.Module):
    """Two convolutions; what happens between them is the subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)


def test_an_unknown_operator_pins_what_it_touches_and_is_listed() -> None:
    class Distances(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x + torch.cdist(x, x).mean())

    structure = analyse(export(Distances(), image()))
    assert structure.unit_count == 0
    listed = {p.op: p for p in structure.pinned}
    assert listed["cdist"].reason == "no rule is known for this operator"
    assert listed["cdist"].count == 6


def test_writing_into_a_part_of_a_tensor_pins_it() -> None:
    class Written(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x[:, 2:4] = 1.0
            return self.b(x)

    structure = analyse(export(Written(), image()))
    assert structure.unit_count == 0
    assert any(p.reason == "it writes into a part of another tensor" for p in structure.pinned)


def test_indices_that_depend_on_data_pin_their_axis() -> None:
    class Sorted(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            order = x.mean((0, 2, 3)).argsort()
            return self.b(x.index_select(1, order))

    assert analyse(export(Sorted(), image())).unit_count == 0


def test_an_unused_parameter_is_no_unit() -> None:
    class Spare(Between):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x))

    assert analyse(export(Spare(), image())).unit_count == 0


def test_bound_labels_follow_their_variables() -> None:
    labels = Labels()
    flat, major, minor = labels.fresh(6), labels.fresh(2), labels.fresh(3)
    labels.unify(flat, np.array([labels.union((int(a), int(b))) for a in major for b in minor]))
    assert labels.members(int(flat[4])) == {major[1], minor[1]}
    labels.pin(int(minor[1]))
    assert labels.members(int(flat[4])) == {major[1]}
    labels.pin(int(flat[5]))
    assert labels.find(int(major[1])) == labels.find(int(minor[2])) == labels.find(int(flat[4])) == PINNED


def test_products_that_do_not_match_lose_freedom_and_stay_equal() -> None:
    labels = Labels()

    def grid(majors: np.ndarray, minors: np.ndarray) -> np.ndarray:
        return np.array([labels.union((int(a), int(b))) for a in majors for b in minors])

    first, second = grid(labels.fresh(3), labels.fresh(4)), grid(labels.fresh(4), labels.fresh(3))
    labels.unify(first, second)
    assert np.array_equal(labels.resolve(first), labels.resolve(second))
