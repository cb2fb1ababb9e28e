"""The latency table: whole grids from few points, monotone costs that meet the measured whole, and its way through JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.prune import Structure, analyse, remove
from edgepress.compress.prune.budget import Budget
from edgepress.compress.prune.heavy import Configuration, heavy_layers
from edgepress.compress.prune.latency import Grid, LatencyTable, ModelTime, fit, monotone, parts_of
from edgepress.compress.prune.select import SelectSettings, choose
from edgepress.targets.errors import PruneError

from .proof import export, removals

Time = Callable[[int, int], float]
WIDTHS = (8, 16, 24, 32)


def tiles(read: int, make: int) -> float:
    """A kernel that works in tiles of 16 channels."""
    return 0.01 * -(-read // 16) * -(-make // 16)


def cross(time: Time, reads: tuple[int, ...] = WIDTHS, makes: tuple[int, ...] = WIDTHS) -> list[tuple[int, int, float]]:
    pairs = {(a, makes[-1]) for a in reads} | {(reads[-1], b) for b in makes}
    return [(a, b, time(a, b)) for a, b in sorted(pairs)]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(32, 16, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head((x + self.outer(torch.sigmoid(self.inner(x)))).mean((2, 3)))


def table_of(program: ExportedProgram, structure: Structure, whole_ms: float, time: Time = tiles) -> LatencyTable:
    layers = heavy_layers(program, structure)
    configurations = {layer.configuration.key: layer.configuration for layer in layers}

    def widths(c: Configuration, side: int) -> tuple[int, ...]:
        size = c.widths[side]
        return tuple(range(4, size + 1, 4)) if c.free[side] else (size,)

    keys = {layer.name: layer.configuration.key for layer in layers}
    points = {key: tuple(cross(time, widths(c, 0), widths(c, 1))) for key, c in configurations.items()}
    parts = parts_of({key: Grid.of(measured) for key, measured in points.items()}, keys, structure, program)
    whole = ModelTime(*parts(np.zeros(structure.unit_count, dtype=bool)), whole_ms)
    return LatencyTable("anywhere", "a formula", "fp32", 1, 1, 0.005, (whole,), keys, points)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return export(Residual(), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def structure(program: ExportedProgram) -> Structure:
    return analyse(program)


def test_a_kernel_of_tiles_is_known_everywhere_from_one_row_and_one_column() -> None:
    grid = Grid.of(cross(tiles))
    assert np.allclose(grid.milliseconds, [[tiles(a, b) for b in WIDTHS] for a in WIDTHS])


def test_points_inside_correct_what_row_and_column_suggest() -> None:
    def with_overhead(read: int, make: int) -> float:
        return 0.01 + 1e-5 * read * make

    without = Grid.of(cross(with_overhead))
    grid = Grid.of([*cross(with_overhead), *((a, b, with_overhead(a, b)) for a in (8, 16) for b in (8, 16))])
    errors = [max(abs(g.at(a, b) / with_overhead(a, b) - 1) for a in WIDTHS for b in WIDTHS) for g in (without, grid)]
    assert errors[1] < 0.05 < errors[0]
    assert grid.at(8, 16) == pytest.approx(with_overhead(8, 16))


def test_widths_between_are_interpolated_and_widths_beyond_take_the_last() -> None:
    grid = Grid((8, 16), (8, 16), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert [grid.at(12, 12), grid.at(8, 12), grid.at(4, 8), grid.at(16, 20)] == [2.5, 1.5, 1.0, 4.0]


def test_a_side_that_cannot_shrink_has_one_width() -> None:
    assert Grid.of([(3, 8, 1.0), (3, 16, 2.0)]).at(3, 12) == 1.5


def test_a_grid_that_lacks_a_width_says_which() -> None:
    with pytest.raises(PruneError, match=r"\(16, 32\)"):
        Grid.of([point for point in cross(tiles) if point[:2] != (16, 32)] + [(16, 8, 0.1)])


@given(arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0.001, 10)))
def test_times_never_fall_with_width_and_move_as_little_as_that_needs(times: np.ndarray) -> None:
    found = monotone(times)
    assert (np.diff(found, axis=0) >= 0).all() and (np.diff(found, axis=1) >= 0).all()
    assert np.array_equal(monotone(found), found)
    worst = max((times[: i + 1, : j + 1].max() - times[i, j]) / 2 for i in range(times.shape[0]) for j in range(times.shape[1]))
    assert np.abs(found - times).max() <= worst + 1e-12


@pytest.mark.parametrize("whole_ms", [0.5, 0.06], ids=["with a rest", "faster than its layers"])
def test_the_unpruned_model_costs_what_was_measured(program: ExportedProgram, structure: Structure, whole_ms: float) -> None:
    cost = table_of(program, structure, whole_ms).cost(structure, program)
    assert cost(np.zeros(structure.unit_count, dtype=bool)) == pytest.approx(whole_ms)


def test_removing_more_never_costs_more(program: ExportedProgram, structure: Structure) -> None:
    noisy = np.random.default_rng(0)
    cost = table_of(program, structure, 0.5, lambda a, b: tiles(a, b) * noisy.uniform(0.7, 1.3)).cost(structure, program)
    for removed in removals(structure):
        removed, before = removed.copy(), cost(removed)
        for unit in np.flatnonzero(~removed)[:30]:
            removed[unit] = True
            assert cost(removed) <= before + 1e-12
            before = cost(removed)


def test_layers_and_what_other_ops_compute_are_told_apart(program: ExportedProgram, structure: Structure) -> None:
    table = table_of(program, structure, 1.0)
    parts = parts_of(table.grids, table.layers, structure, program)
    inner = next(family for family in structure.families if family.name == "inner")
    removed = np.zeros(structure.unit_count, dtype=bool)
    before = parts(removed)
    removed[list(inner.units[:16])] = True
    after = parts(removed)
    assert before[0] - after[0] == pytest.approx(0.02)  # a tile of `inner` and one of `outer`
    assert before[1] - after[1] == 16 * 8 * 8  # of what sigmoid computes
    assert before[1] == (16 + 16 + 32) * 8 * 8 + 16  # norm, sum, sigmoid, mean


def test_whole_models_tell_what_the_layers_do_not() -> None:
    def taken(layers_ms: float, elements: int) -> ModelTime:
        return ModelTime(layers_ms, elements, 0.02 + 0.8 * layers_ms + 1e-6 * elements + 0.1)

    models = [taken(1.0, 300_000), taken(0.8, 150_000), taken(0.4, 200_000), taken(0.2, 40_000)]
    per_ms, per_element, fixed = fit(models, 0.02)
    for layers_ms, elements in [(0.6, 100_000), (0.3, 30_000), (0.9, 250_000)]:
        predicted = 0.02 + per_ms * layers_ms + per_element * elements + fixed
        assert predicted == pytest.approx(taken(layers_ms, elements).ms, rel=0.03)


def test_noise_never_makes_less_work_cost_more() -> None:
    models = [ModelTime(1.0, 1000, 1.0), ModelTime(0.5, 600, 1.1), ModelTime(0.4, 500, 1.2)]
    coefficients = fit(models, 0.1)
    assert min(coefficients) >= 0
    assert 0.1 + coefficients[0] + coefficients[1] * 1000 + coefficients[2] == pytest.approx(1.0)


def test_a_pruned_model_costs_what_its_removal_did(program: ExportedProgram, structure: Structure) -> None:
    table = table_of(program, structure, 0.5)
    for removed in removals(structure):
        smaller = remove(program, structure, removed)
        later = analyse(smaller)
        again = table.cost(later, smaller)(np.zeros(later.unit_count, dtype=bool))
        assert again == pytest.approx(table.cost(structure, program)(removed))


def test_another_model_is_refused(program: ExportedProgram, structure: Structure) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.another = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.another(x)

    other = export(Other(), torch.randn(2, 4))
    with pytest.raises(PruneError, match=r"no layer 'another\.weight'"):
        table_of(program, structure, 0.5).cost(analyse(other), other)


def test_pruning_to_a_latency_stops_at_the_edge_of_a_tile(program: ExportedProgram, structure: Structure) -> None:
    cost = table_of(program, structure, 0.07).cost(structure, program)
    inner = next(list(family.units) for family in structure.families if family.name == "inner")
    scores = np.ones(structure.unit_count)
    scores[inner] = np.arange(32) / 100
    one_tile, little_less = np.zeros((2, structure.unit_count), dtype=bool)
    one_tile[inner[:16]] = little_less[inner[:4]] = True
    limit = (cost(one_tile) + cost(little_less)) / 2
    selection = choose(structure, scores, Budget("latency", limit), SelectSettings(multiple=4), cost)
    assert cost(selection.removed) == selection.reached <= limit
    assert np.array_equal(selection.removed, one_tile)


def test_a_table_survives_json(program: ExportedProgram, structure: Structure) -> None:
    table = table_of(program, structure, 0.5)
    text = json.dumps(table.to_json())
    assert LatencyTable.from_json(json.loads(text)) == table
    configuration = json.loads(text)["configurations"][table.layers["inner.weight"]]
    assert np.shape(configuration["milliseconds"]) == (len(configuration["in_widths"]), len(configuration["out_widths"])) == (4, 8)


class Mixed(nn.Module):
    """One of every kind of layer, a layer called twice, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth, self.grouped = nn.Conv1d(4, 8, 3, 2, 1), nn.Conv1d(8, 8, 3, 1, 1, groups=8), nn.Conv1d(8, 12, 1, groups=4)
        self.up, self.twice = nn.ConvTranspose1d(12, 16, 2, 2), nn.Linear(16, 16)
        self.matrix = nn.Parameter(torch.randn(16, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.grouped(self.depth(self.first(x))))).transpose(1, 2)
        x = self.twice(torch.relu(self.twice(x)))
        heads = (x @ self.matrix).view(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return (mixed @ mixed.transpose(-1, -2)).sum((1, 2, 3))


def test_every_kind_of_layer_is_found_with_its_shape() -> None:
    program = export(Mixed(), torch.randn(2, 4, 12))
    found = {layer.name: layer.configuration for layer in heavy_layers(program, analyse(program), batch=5)}
    assert list(found) == [
        "first.weight",
        "depth.weight",
        "grouped.weight",
        "up.weight",
        "twice.weight",
        "twice.weight#1",
        "matrix",
        "attention",
    ]
    assert {name: (c.op, c.widths) for name, c in found.items()} == {
        "first.weight": ("conv1d", (4, 8)),
        "depth.weight": ("conv1d", (1, 8)),
        "grouped.weight": ("conv1d", (2, 12)),
        "up.weight": ("conv_transpose1d", (12, 16)),
        "twice.weight": ("linear", (16, 16)),
        "twice.weight#1": ("linear", (16, 16)),
        "matrix": ("linear", (16, 24)),
        "attention": ("attention", (4, 2)),
    }
    assert found["first.weight"].input == (5, 4, 12) and found["first.weight"].free == (False, True)
    assert found["twice.weight"].input == (5, 12, 16) and found["attention"].input == (5, 2, 12, 4)


def test_steps_of_widths_follow_groups_heads_and_the_kernels_multiple() -> None:
    grouped = Configuration("conv2d", (8, 96), (True, True), (1, 64, 8, 8), {"groups": 8})
    assert [grouped.step(1, 8), grouped.step(0, 4), grouped.step(0, 8)] == [24, 4, 1]
    transposed = Configuration("conv_transpose2d", (32, 4), (True, True), (1, 32, 8, 8), {"groups": 8})
    assert [transposed.step(0, 8), transposed.step(1, 2)] == [8, 2]
    attention = Configuration("attention", (32, 8), (True, True), (1, 8, 16, 32), {"key_heads": 4})
    assert [attention.step(0, 8), attention.step(1, 8)] == [8, 2]
