"""The search for layers that stay in float, over targets whose drop is known in advance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.config import TargetPlan
from edgepress.config_steps import MixedBudget
from edgepress.float_layers import shortest
from edgepress.mixed_layers import MixedLayers
from edgepress.results import Candidate, TargetRun
from edgepress.step import Result
from edgepress.steps.sensitivity import assign
from edgepress.targets.errors import EdgepressError, ExportError, QuantizationError
from edgepress.targets.nouns import Scheme, Target

LAYERS = ("stem", "body", "neck", "head")
STATIC = Scheme("int8", "static")


@given(st.integers(1, 300), st.integers(1, 400))
def test_the_shortest_prefix_that_holds_is_found_in_few_trials(longest: int, needed: int) -> None:
    tried: list[int] = []

    def holds(length: int) -> bool:
        tried.append(length)
        return length >= needed

    found = shortest(longest, holds)
    assert found == (needed if needed <= longest else None)
    assert len(tried) == len(set(tried)) <= 2 * longest.bit_length() + 2 and all(1 <= length <= longest for length in tried)


def result(value: dict[str, Any], folder: Path = Path()) -> Result:
    return Result(value, folder, "", False, 0.0)


def budget(**values: object) -> MixedBudget:
    return MixedBudget.model_validate(values)


class Steps:
    """Steps whose answers are known: every layer weighs 100 bytes in 8 bits, 50 in 4, 25 in 2 and 400 in float, and 100 bytes are
    something else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sensitivity(self, plan: TargetPlan, prepared: object, scheme: Scheme, narrow: Sequence[int] = ()) -> Result:
        measured = {"kind": "linear", "noise": 1.0, "macs_share": 0.25, "weights": 100, "channels": 10}
        measured |= {"int4_noise": 2.0 if 4 in narrow else None, "int2_noise": 3.0 if 2 in narrow else None}
        return result({"layers": [{"node": name, "layer": f"net.{name}", **measured} for name in LAYERS], "order": list(LAYERS)})

    def assigned(self, plan: TargetPlan, layers: Result, room: float | None) -> Result:
        narrow = layers.value["layers"][0]["int4_noise"] is not None
        if room is None:
            floats = [{"float_layers": list(LAYERS[:count]), "int4_layers": []} for count in (1, 2, 3)]
            return result({"assignments": [{"float_layers": [], "int4_layers": list(LAYERS)}, *floats] if narrow else floats})
        if room >= 0:
            return result({"assignments": [{"float_layers": list(LAYERS[: int(room // 300)]), "int4_layers": []}]})
        count, two = math.ceil(-room / 50), math.ceil((-room - 200) / 25)
        if two > 0 and layers.value["layers"][0]["int2_noise"] is not None:
            return result({"assignments": [{"int2_layers": list(LAYERS[:two]), "int4_layers": list(LAYERS[two:])}]})
        return result({"assignments": [{"float_layers": [], "int4_layers": list(LAYERS[:count])}] if narrow and count <= 4 else []})

    def within_time(self, plan: TargetPlan, layers: Result, costs: Mapping[str, float], room: float) -> Result:
        return result(assign({"layers": layers.value["layers"], "costs": costs, "room": room}, self.folder))

    def export(self, plan: TargetPlan, prepared: object, scheme: Scheme, baseline: bool = False) -> Result:
        kept = 4 if scheme.kind == "float" else len(scheme.float_layers)
        narrow = len(scheme.narrow_layers)
        size = 100 + 400 * kept + 100 * (4 - kept) - 50 * narrow - 25 * len(scheme.int2_layers) + self.more * (0 < kept + narrow < 4)
        folder = self.folder / scheme.label
        (folder / "artifact").mkdir(parents=True, exist_ok=True)
        (folder / "artifact" / "model").write_bytes(bytes(size))
        return result({"artifact": {"path": "model", "facts": {}}}, folder)

    def paired(self, name: str, plan: TargetPlan, prepared: object, pair: tuple[Result, Result]) -> Result:
        kept = (len((pair[0].folder / "artifact" / "model").read_bytes()) - 500) // 300
        return result({"latency_ratio": {"value": 0.4 + 0.1 * kept}})

    more = 0


def search(
    folder: Path, drop: Callable[[int], float], limit: float, more: int = 0, runtime: str = "onnxruntime", kind: type[Steps] = Steps
) -> tuple[TargetRun, MixedLayers]:
    """A target that loses `drop(layers in float)`, with all layers in integers tried already."""
    steps = kind(folder)
    steps.more = more
    plan = TargetPlan(Target("phone", runtime, "CPU", "int8"), (), frozenset())
    run = TargetRun(plan)

    def attempt(scheme: Scheme) -> Candidate:
        lost = drop(len(scheme.float_layers))
        return Candidate(scheme, steps.export(plan, None, scheme), result({"drop": lost}), lost <= limit, f"drop of {lost}")

    run.tried.append(attempt(STATIC))
    return run, MixedLayers(steps, run, None, attempt)  # type: ignore[arg-type]


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_fallback_ends_with_the_fewest_layers_that_hold(needed: int, tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 0.1 if kept >= needed else 5.0, 1.0)
    best = layers.fallback()
    assert best is not None and best.held and best.scheme.float_layers == tuple(sorted(LAYERS[:needed]))
    assert run.fallback is not None and run.fallback["met"] and run.fallback["layers"] == [f"net.{name}" for name in LAYERS[:needed]]
    assert run.fallback["tried"][0] == {"layers": 0, "drop": 5.0} and "in float: net.stem" in run.tried[-1].why


def test_an_exhausted_fallback_gives_its_best_and_says_that_the_goal_was_not_met(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 9.0 - kept, 1.0)
    best = layers.fallback()
    assert best is not None and not best.held and len(best.scheme.float_layers) == 3
    assert run.fallback is not None and not run.fallback["met"] and run.fallback["drop"] == 6.0 and len(run.fallback["layers"]) == 3


def test_a_fallback_that_helps_nothing_stays_with_all_layers_in_integers(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 5.0, 1.0)
    assert layers.fallback() is run.tried[0] and run.fallback is not None and run.fallback["layers"] == []


def test_a_set_that_cannot_be_exported_is_passed_over_and_named(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 0.0 if kept > 1 else 5.0, 1.0)
    attempt = layers._attempt

    def failing(scheme: Scheme) -> Candidate:
        if len(scheme.float_layers) == 1:
            raise ExportError("the converter crashed")
        return attempt(scheme)

    layers._attempt = failing
    best = layers.fallback()
    assert best is not None and len(best.scheme.float_layers) == 2
    assert any("the converter crashed" in candidate.why for candidate in run.tried)


def test_a_budget_of_bytes_is_kept_by_the_file_itself(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 5.0 - kept, 1.0, more=250)
    best = layers.mixed(budget(size=0.7))  # 1190 of 1700 bytes: two layers by the sum, one by what the file really has
    assert best.scheme.float_layers == ("stem",) and run.mixed is not None and run.mixed["drop"] == 4.0
    assert [layer["bits"] for layer in run.mixed["layers"]] == [32, 8, 8, 8]


@pytest.mark.parametrize(
    ("spent", "first", "divided"),
    [
        ({"size": 0.7}, 0.3, "static"),
        ({"latency": 0.7}, 0.3, "static"),
        ({"accuracy_drop": "0.25pp"}, 0.3, "static-matmul"),
        ({"size": 0.7}, 3.0, "static-matmul"),
    ],
)
def test_a_budget_divides_the_first_scheme_that_holds_and_one_of_drop_the_most_accurate(
    spent: dict[str, object], first: float, divided: str, tmp_path: Path
) -> None:
    run, layers = search(tmp_path, lambda kept: first, 1.0)
    made = run.tried[0]
    run.tried.append(Candidate(Scheme("int8", "static-matmul"), made.export, result({"drop": 0.2}), True, "drop of 0.2"))
    assert layers.mixed(budget(**spent)).scheme.kind == divided


def test_a_budget_of_bytes_that_integers_alone_exceed_is_refused_with_the_nearest(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    with pytest.raises(QuantizationError, match=r"cannot be as small as 0\.2x.*500 bytes, 0\.294x.*\{size: 0\.295x\}"):
        layers.mixed(budget(size=0.2))


def test_a_budget_of_bytes_below_8_bits_takes_4_where_the_target_stores_them(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    best = layers.mixed(budget(size=430 / 1700), narrow=(4,))
    assert best.scheme.int4_layers == ("body", "stem") and best.size_bytes == 400 and "in 4 bits: net.stem, net.body" in best.why
    assert run.mixed is not None and [layer["bits"] for layer in run.mixed["layers"]] == [4, 4, 8, 8]
    assert run.mixed["layers"][0]["int4_sensitivity"] == 2.0


def test_4_bits_are_tightened_by_what_the_file_has_too_much_and_refused_with_all_of_them_in_mind(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0, more=60)
    assert layers.mixed(budget(size=0.2), narrow=(4,)).scheme.int4_layers == tuple(sorted(LAYERS)), "three layers are 60 bytes larger"
    with pytest.raises(
        QuantizationError, match=r"every layer in the fewest bits that it can have its file has 300 bytes, 0\.176x.*0\.177x"
    ):
        layers.mixed(budget(size=0.17), narrow=(4,))


def test_a_budget_of_bytes_below_4_bits_takes_2_and_says_so(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    best = layers.mixed(budget(size=230 / 1700), narrow=(4, 2))
    assert best.scheme.int2_layers == ("body", "neck", "stem") and best.size_bytes == 225, best.scheme
    assert "in 4 bits: net.head; in 2 bits: net.stem, net.body" in best.why
    assert run.mixed is not None and sorted(layer["bits"] for layer in run.mixed["layers"]) == [2, 2, 2, 4]
    assert run.mixed["layers"][0]["int2_sensitivity"] == 3.0


class Creeping(Steps):
    """A file that becomes smaller by a tenth of what its weights lose: the rest goes into the nodes that unpack them."""

    def assigned(self, plan: TargetPlan, layers: Result, room: float | None) -> Result:
        self.room = room
        return result({"assignments": [{"int4_layers": LAYERS[:2] if room is not None else LAYERS}]})

    def within_time(self, plan: TargetPlan, layers: Result, costs: Mapping[str, float], room: float) -> Result:
        return result(assign({"layers": layers.value["layers"], "costs": costs, "room": room}, self.folder))

    def export(self, plan: TargetPlan, prepared: object, scheme: Scheme, baseline: bool = False) -> Result:
        made = super().export(plan, prepared, scheme, baseline)
        if scheme.int4_layers == tuple(sorted(LAYERS[:2])) and self.room is not None:
            (made.folder / "artifact" / "model").write_bytes(bytes(round(490 + 0.1 * self.room)))
        return made


def test_a_file_that_is_too_large_again_and_again_does_not_end_in_the_smallest_there_is(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0, kind=Creeping)
    best = layers.mixed(budget(size=450 / 1700), narrow=(4,))
    assert len(best.scheme.int4_layers) == 2 and best.size_bytes <= 450


def test_a_budget_of_drop_takes_4_bits_even_where_8_hold(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    assert layers.mixed(budget(accuracy_drop="1pp"), narrow=(4,)).scheme.int4_layers == tuple(sorted(LAYERS))


def test_a_division_that_cannot_be_made_is_the_targets_error(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0)

    def attempt(scheme: Scheme) -> Candidate:
        raise QuantizationError("refine fell over")

    layers._attempt = attempt
    with pytest.raises(EdgepressError, match=r"'phone': no file could be made of int8 static, 4 int4.*refine fell over"):
        layers.mixed(budget(size=300 / 1700), narrow=(4,))


def test_a_budget_of_latency_leaves_weights_in_8_bits(tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    layers.mixed(budget(latency=0.6), narrow=(4,))
    assert run.mixed is not None and all(layer["int4_sensitivity"] is None for layer in run.mixed["layers"])


@pytest.mark.parametrize(("limit", "kept"), [(5.0, 0), (4.0, 1), (2.5, 3)])
def test_a_budget_of_drop_takes_the_smallest_file_within_it(limit: float, kept: int, tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda count: 5.0 - count, limit)
    assert len(layers.mixed(budget(accuracy_drop=f"{limit}pp")).scheme.float_layers) == kept


def test_a_budget_of_drop_that_no_assignment_reaches_is_refused_with_the_nearest(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 5.0 - kept, 1.0)
    with pytest.raises(QuantizationError, match=r"the nearest is 2\.00, with 3 of 4 layers in float"):
        layers.mixed(budget(accuracy_drop="1pp"))


@pytest.mark.parametrize(("ratio", "kept"), [(0.4, 0), (0.55, 1), (0.6, 2), (0.9, 3)])
def test_a_budget_of_latency_takes_as_many_float_layers_as_its_runtime_has_time_for(ratio: float, kept: int, tmp_path: Path) -> None:
    run, layers = search(tmp_path, lambda count: 5.0 - count, 1.0)
    assert len(layers.mixed(budget(latency=ratio + 1e-9)).scheme.float_layers) == kept
    assert run.mixed is not None and sum(layer["bits"] == 32 for layer in run.mixed["layers"]) == kept


def test_a_budget_of_latency_that_integers_alone_exceed_is_refused_with_the_nearest(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0)
    with pytest.raises(QuantizationError, match=r"cannot take as little as 0\.3x.*it takes 0\.4x.*\{latency: 0\.4.x\}"):
        layers.mixed(budget(latency=0.3))


def test_a_budget_of_latency_where_nothing_can_be_timed_is_refused(tmp_path: Path) -> None:
    _, layers = search(tmp_path, lambda kept: 0.0, 1.0, runtime="coreml")
    with pytest.raises(QuantizationError, match=r"cannot follow a budget of latency.*Mac"):
        layers.mixed(budget(latency=0.5))
