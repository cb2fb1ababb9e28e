"""Layers in float for a budget of time, on targets whose times are known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compress.quantize.mixed import within_time
from edgepress.compress.quantize.sensitivity import Sensitivity
from edgepress.latency_budget import Kept, LatencyBudget, alike

#: What a layer of a kind takes in integers and in float, in hundredths of the float model's time.
Times = dict[int, tuple[int, int]]


class Target:
    """Layers of some kinds whose times add up to that of the file, `more` added wherever a float layer meets an integer one."""

    def __init__(self, kinds: list[int], noises: list[int], times: Times, more: float = 0.0) -> None:
        self.layers = [
            {
                "node": f"n{i}",
                "layer": f"m{i}",
                "kind": "conv",
                "macs_share": kind / 10,
                "weights": 10,
                "channels": 2,
                "noise": float(noise),
            }
            for i, (kind, noise) in enumerate(zip(kinds, noises, strict=True))
        ]
        self.kinds, self.times, self.more, self.timed = kinds, times, more, list[Kept]()

    @property
    def floats(self) -> float:
        """The time of the float model, which all others are divided by."""
        return sum(self.times[kind][1] for kind in self.kinds)

    def time(self, kept: Kept) -> float:
        self.timed.append(kept)
        integer = [layer["node"] not in kept for layer in self.layers]
        own = sum(self.times[kind][0 if whole else 1] for kind, whole in zip(self.kinds, integer, strict=True))
        return (own + self.more * sum(a != b for a, b in pairwise(integer))) / self.floats

    def noise(self, kept: Kept) -> float:
        return sum(float(layer["noise"]) for layer in self.layers if layer["node"] not in kept)

    def assign(self, costs: Mapping[str, float], room: float) -> Kept | None:
        found = within_time([Sensitivity(**layer) for layer in self.layers], costs, room)
        return None if found is None else found.float_layers

    def search(self) -> LatencyBudget:
        return LatencyBudget(self.layers, self.time, self.assign)


def subsets(names: list[str]) -> list[Kept]:
    """All sets of layers in float that leave one in integers."""
    return [kept for count in range(len(names)) for kept in combinations(names, count)]


@settings(deadline=None)  # the first example imports the solver
@given(st.data())
def test_where_times_add_up_no_other_layers_have_less_noise_in_that_time(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    noises = data.draw(st.lists(st.integers(1, 50), min_size=len(kinds), max_size=len(kinds)))
    target = Target(kinds, noises, {kind: (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))) for kind in range(3)})
    ratio = data.draw(st.integers(20, 150)) / 100 + 1e-6
    kept = target.search().search(ratio)
    reached = [other for other in subsets([str(layer["node"]) for layer in target.layers]) if target.time(other) <= ratio]
    assert (kept is None) == (not reached)
    if kept is not None:
        assert target.time(kept) <= ratio and target.noise(kept) <= min(map(target.noise, reached)) + 1e-9


def test_what_seams_take_is_found_out_by_timing_what_was_chosen() -> None:
    target = Target([0, 1, 0, 1, 0, 1], [1, 9, 2, 8, 3, 7], {0: (5, 10), 1: (5, 11)}, more=4)
    search = target.search()
    kept = search.search(0.8)
    assert kept is not None and target.time(kept) <= 0.8 < target.time(("n1", "n3", "n5"))
    assert len(target.timed) <= 2 + 2 + 7 + 2


def test_integers_that_are_slower_than_floats_leave_the_layers_they_speed_up() -> None:
    target = Target([0, 1, 1, 1], [5, 1, 1, 1], {0: (10, 60), 1: (50, 10)})
    search = target.search()
    assert target.time(()) > 1 and search.search(0.9) == ("n1", "n2", "n3")
    assert search.costs["n0"] > 0 > search.costs["n1"]


def test_a_budget_that_nothing_reaches_has_timed_the_quickest() -> None:
    target = Target([0, 1, 1], [5, 1, 1], {0: (10, 30), 1: (50, 10)})
    search = target.search()
    assert search.search(0.3) is None
    assert min(search.times, key=search.times.__getitem__) == ("n1", "n2")


def test_a_layer_whose_float_has_no_file_stays_in_integers() -> None:
    target = Target([0, 1, 1], [9, 1, 1], {0: (10, 30), 1: (5, 10)})
    search = LatencyBudget(target.layers, lambda kept: float("inf") if "n0" in kept else target.time(kept), target.assign)
    assert search.search(0.9) == ("n1", "n2")


@pytest.mark.parametrize("field", ["kind", "weights", "channels", "macs_share"])
def test_layers_that_differ_are_timed_apart(field: str) -> None:
    same: dict[str, Any] = {"kind": "conv", "weights": 9, "channels": 3, "macs_share": 0.5}
    other = same | {field: "linear" if field == "kind" else 1}
    layers = [{"node": "a", **same}, {"node": "b", **other}, {"node": "c", **same}]
    assert alike(layers) == [["a", "c"], ["b"]]
