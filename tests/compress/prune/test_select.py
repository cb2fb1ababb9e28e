"""Which units go: budgets, widths, limits, patterns, and budgets that cannot be reached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune.budget import Budget, bytes_cost
from edgepress.compress.prune.importance import scores
from edgepress.compress.prune.select import KINDS, Selection, SelectSettings, choose
from edgepress.compress.prune.structure import Structure, analyse
from edgepress.targets.errors import PruneError


class Net(nn.Module):
    """A residual stage of 16 channels, an inner width of 32, a stage of 24, two linear layers around 40 neurons."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 16, 3, 1, 1)
        self.down = nn.Conv2d(16, 24, 3, 2, 1)
        self.fc1, self.fc2 = nn.Linear(24, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc2(torch.relu(self.fc1(torch.relu(self.down(x)).mean((2, 3)))))


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch", min=1)},))


@pytest.fixture(scope="module")
def structure(program: ExportedProgram) -> Structure:
    return analyse(program)


@pytest.fixture(scope="module")
def ranks(program: ExportedProgram, structure: Structure) -> np.ndarray:
    return scores(program, structure, "l2")


def widths(structure: Structure, selection: Selection) -> dict[str, int]:
    return {family.name: len(family.units) - int(selection.removed[list(family.units)].sum()) for family in structure.families}


def whole(structure: Structure) -> dict[str, int]:
    return {family.name: len(family.units) for family in structure.families}


def grown(structure: Structure, selection: Selection, ranks: np.ndarray) -> list[np.ndarray]:
    """The same selection with the best removed unit of each family put back, one family at a time."""
    trials = []
    for family in structure.families:
        gone = [unit for unit in family.units if selection.removed[unit]]
        if gone:
            trial = selection.removed.copy()
            trial[max(gone, key=lambda unit: ranks[unit])] = False
            trials.append(trial)
    return trials


@pytest.mark.parametrize("ranking", ["global", "cost"])
@pytest.mark.parametrize("speedup", [1.2, 2.0, 4.0])
def test_a_speedup_is_met_and_no_family_could_keep_one_unit_more(
    structure: Structure, ranks: np.ndarray, ranking: str, speedup: float
) -> None:
    nothing = np.zeros(structure.unit_count, dtype=bool)
    selection = choose(structure, ranks, Budget("speedup", speedup), SelectSettings(ranking=ranking))
    assert selection.reached == pytest.approx(structure.macs(nothing) / structure.macs(selection.removed))
    assert selection.reached >= speedup
    for trial in grown(structure, selection, ranks):
        assert structure.macs(nothing) / structure.macs(trial) < speedup


def test_the_least_important_units_of_a_family_go_first(structure: Structure, ranks: np.ndarray) -> None:
    removed = choose(structure, ranks, Budget("speedup", 2.0)).removed
    for family in structure.families:
        units = np.array(family.units)
        if removed[units].any():
            assert ranks[units][removed[units]].max() <= ranks[units][~removed[units]].min()


def test_a_global_ranking_removes_where_scores_are_low_and_a_local_one_everywhere_alike(structure: Structure) -> None:
    low = next(family for family in structure.families if family.name == "fc1")
    ranks = np.ones(structure.unit_count) + np.linspace(0, 0.1, structure.unit_count)
    ranks[list(low.units)] *= 0.01
    budget = Budget("parameters", 0.95)
    assert [name for name, width in widths(structure, choose(structure, ranks, budget)).items() if width < whole(structure)[name]] == [
        "fc1"
    ]
    selection = choose(structure, ranks, Budget("parameters", 0.5), SelectSettings(ranking="local"))
    assert 0.45 < selection.reached <= 0.5
    local = widths(structure, selection)
    shares = [local[name] / width for name, width in whole(structure).items()]
    assert max(shares) - min(shares) < 0.1


def test_a_ranking_by_cost_removes_fewer_units_for_the_same_speedup(structure: Structure) -> None:
    ranks = np.ones(structure.unit_count)
    removed = [
        int(choose(structure, ranks, Budget("speedup", 2.0), SelectSettings(ranking=ranking)).removed.sum())
        for ranking in ("cost", "local")
    ]
    assert removed[0] < removed[1]


def test_shares_of_parameters_and_bytes_are_met(program: ExportedProgram, structure: Structure, ranks: np.ndarray) -> None:
    nothing = np.zeros(structure.unit_count, dtype=bool)
    selection = choose(structure, ranks, Budget("parameters", 0.4))
    assert structure.parameters(selection.removed) <= 0.4 * structure.parameters(nothing)
    assert 0.35 < selection.reached <= 0.4
    cost = bytes_cost(program, structure)
    assert cost(nothing) == sum(value.numel() * value.element_size() for value in program.state_dict.values())
    selection = choose(structure, ranks, Budget("bytes", 0.5), cost=cost)
    assert 0.45 < selection.reached <= 0.5
    with pytest.raises(PruneError, match="bytes needs to know the cost"):
        choose(structure, ranks, Budget("bytes", 0.5))


def test_a_measured_latency_is_met_and_units_that_do_not_pay_stay(structure: Structure, ranks: np.ndarray) -> None:
    """A device on which only the 32 inner channels matter, in steps of 8."""
    inner = next(family for family in structure.families if len(family.units) == 32)

    def cost(removed: np.ndarray) -> float:
        return 1.0 + np.ceil((32 - removed[list(inner.units)].sum()) / 8)

    selection = choose(structure, ranks, Budget("latency", 3.0), cost=cost)
    assert selection.reached == 3.0
    assert widths(structure, selection) == {**whole(structure), inner.name: 16}
    with pytest.raises(PruneError, match="the most is 2 "):
        choose(structure, ranks, Budget("latency", 1.5), cost=cost)


def test_widths_are_multiples_where_families_are_larger(structure: Structure, ranks: np.ndarray) -> None:
    selection = choose(structure, ranks, Budget("speedup", 2.0), SelectSettings(multiple=8))
    for name, width in widths(structure, selection).items():
        assert width % 8 == 0 or width == whole(structure)[name]
    loose = choose(structure, ranks, Budget("speedup", 2.0), SelectSettings(multiple=20))
    for name, width in widths(structure, loose).items():
        assert width == whole(structure)[name] or whole(structure)[name] < 20 or width % 20 == 0
    other = choose(structure, ranks, Budget("speedup", 2.0), SelectSettings(multiple=8, multiples={"channels": 1, "neurons": 10}))
    assert any(width % 8 for width in widths(structure, other).values())


def test_least_widths_and_largest_shares_hold(structure: Structure, ranks: np.ndarray) -> None:
    selection = choose(structure, ranks, Budget("speedup", 2.5), SelectSettings(min_channels=10))
    assert min(widths(structure, selection).values()) >= 10
    selection = choose(structure, ranks, Budget("speedup", 2.5), SelectSettings(max_sparsity=0.5))
    for name, width in widths(structure, selection).items():
        assert width >= whole(structure)[name] / 2


def test_a_budget_out_of_reach_says_the_most_that_can_be_reached(structure: Structure, ranks: np.ndarray) -> None:
    settings = SelectSettings(max_sparsity=0.5)
    with pytest.raises(PruneError, match=r"speedup 50 cannot be reached: the most is (\d\.\d+) with max_sparsity 0\.5") as caught:
        choose(structure, ranks, Budget("speedup", 50), settings)
    most = float(str(caught.value).split("the most is ")[1].split()[0])
    assert choose(structure, ranks, Budget("speedup", most - 0.01), settings).reached == pytest.approx(most, rel=0.01)


def test_ignored_layers_keep_their_outputs_and_protected_ones_everything(structure: Structure, ranks: np.ndarray) -> None:
    budget = Budget("speedup", 1.3)
    for name in ("stem", "conv2", "st*"):  # one residual stage: every layer that writes into it counts
        stage = widths(structure, choose(structure, ranks, budget, SelectSettings(ignore=(name,))))
        assert [width for key, width in stage.items() if whole(structure)[key] == 16] == [16]
    kept = widths(structure, choose(structure, ranks, budget, SelectSettings(ignore=("conv1",))))
    assert [width for name, width in kept.items() if whole(structure)[name] == 32] == [32]
    assert [width for name, width in kept.items() if whole(structure)[name] == 16] < [16]
    kept = widths(structure, choose(structure, ranks, budget, SelectSettings(protect=("down",))))
    assert {width for name, width in kept.items() if whole(structure)[name] in (16, 24)} == {16, 24}


def test_a_layer_that_could_lose_nothing_may_be_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tail, self.aux = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.tail(torch.relu(self.body(x))), self.aux(x)

    structure = analyse(torch.export.export(Two().eval(), (torch.randn(2, 4),), dynamic_shapes=({0: Dim("batch", min=1)},)))
    ranks = np.ones(structure.unit_count)
    assert choose(structure, ranks, Budget("parameters", 0.8), SelectSettings(protect=("aux",))).removed.any()


def test_patterns_that_match_nothing_name_the_nearest_layer(structure: Structure, ranks: np.ndarray) -> None:
    for settings in (SelectSettings(ignore=("convl",)), SelectSettings(protect=("convl",))):
        with pytest.raises(PruneError, match=r"no layer matches 'convl'.*conv1"):
            choose(structure, ranks, Budget("speedup", 2.0), settings)


def test_only_the_kinds_asked_for_go(structure: Structure, ranks: np.ndarray) -> None:
    with pytest.raises(PruneError, match="nothing to prune"):
        choose(structure, ranks, Budget("speedup", 2.0), SelectSettings(kinds=("heads",)))
    kinds = {family.name: family.kind for family in structure.families}
    assert set(kinds.values()) <= set(KINDS)
    chosen = choose(structure, ranks, Budget("parameters", 0.99), SelectSettings(kinds=(kinds["fc1"],)))
    assert {kinds[name] for name, width in widths(structure, chosen).items() if width < whole(structure)[name]} == {kinds["fc1"]}


def test_notes_say_what_every_family_loses(structure: Structure, ranks: np.ndarray) -> None:
    selection = choose(structure, ranks, Budget("speedup", 2.0))
    lost = {name for name, width in widths(structure, selection).items() if width < whole(structure)[name]}
    assert {note.split(":")[0] for note in selection.notes} == lost
    assert all(" -> " in note for note in selection.notes)


def test_steps_shrink_by_equal_factors_and_end_at_the_budget(structure: Structure, ranks: np.ndarray) -> None:
    macs = structure.macs(np.zeros(structure.unit_count, dtype=bool))
    steps = Budget("speedup", 4.0).steps(2, macs)
    assert [step.limit for step in steps] == [pytest.approx(2.0), 4.0]
    assert [step.limit for step in Budget("parameters", 0.25).steps(2, 100)] == [pytest.approx(0.5), 0.25]
    assert [step.limit for step in Budget("latency", 1.0).steps(2, 4.0)] == [pytest.approx(2.0), 1.0]
    assert all(step.base == macs for step in steps)
    smaller = Budget("speedup", 2.0, base=4 * macs)
    assert choose(structure, ranks, smaller).removed.sum() == 0
    with pytest.raises(PruneError, match="0 steps"):
        Budget("speedup", 2.0).steps(0, macs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("speed", 2.0), "'speed'.*'speedup'"),
        (lambda: Budget("speedup", 0.5), "speedup is 0.5: it must be above 1"),
        (lambda: Budget("parameters", 1.5), "between 0 and 1"),
        (lambda: Budget("latency", 0), "above 0"),
        (lambda: SelectSettings(ranking="globl"), "'globl'.*'global'"),
        (lambda: SelectSettings(kinds=("head",)), "'head'.*'heads'"),
        (lambda: SelectSettings(multiple=0), "1 or more"),
        (lambda: SelectSettings(max_sparsity=0), "max_sparsity is 0"),
    ],
)
def test_wrong_settings_say_what_is_right(make: Any, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        make()
