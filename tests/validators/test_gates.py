import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.targets.errors import ConfigError
from edgepress.targets.nouns import Evidence
from edgepress.validators.gates import KINDS, Gate, exit_code, judge, overall

DROP = Gate("accuracy_drop", 1.0, "pp")
RATIO = Gate("latency_ratio", 0.8, "ratio")
SIZE = Gate("size", 2e6, "bytes")


def one(gate, evidence=None, **options):
    return judge([gate], [] if evidence is None else [evidence], **options)[0]


def drop(value, low, high, samples=1000, unit="pp", **rest):
    return Evidence("accuracy_drop", value, unit, (low, high), samples, **rest)


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (drop(0.2, -0.3, 0.7), "pass"),
        (drop(1.8, 1.1, 2.5), "fail"),
        (drop(0.8, 0.1, 1.5), "undecided"),
        (drop(1.2, 0.9, 1.5), "undecided"),
        (drop(0.5, 0.0, 1.0), "undecided"),
        (drop(-2.0, -3.0, -1.0), "pass"),
    ],
)
def test_a_gate_is_a_question_of_non_inferiority(evidence, verdict):
    assert one(DROP, evidence).verdict == verdict


def test_undecided_says_how_many_samples_would_decide():
    found = one(DROP, drop(0.2, -1.0, 1.4))
    assert found.next_step == "Collect about 4,600 validation samples to decide at 1.00 pp; you have 1,000."
    assert found.limit == "at most 1.00 pp" and found.observed == "0.20 pp (-1.00 pp to 1.40 pp) on 1,000 validation samples"


def test_undecided_at_the_very_limit_has_a_next_step_too():
    assert "No practical number" in str(one(DROP, drop(1.0, 0.0, 2.0)).next_step)


def test_exact_facts_need_no_interval():
    assert one(SIZE, Evidence("size", 2e6, "bytes")).verdict == "pass"
    found = one(SIZE, Evidence("size", 2e6 + 1, "bytes"))
    assert found.verdict == "fail" and found.limit == "at most 2.00 MB" and found.next_step


def test_smallest_values_are_judged_the_other_way_round():
    gate = Gate("argmax_agreement", 0.99, "")
    assert one(gate, Evidence("argmax_agreement", 0.98, "")).verdict == "fail"
    assert one(gate, Evidence("argmax_agreement", 0.995, "")).verdict == "pass"
    assert one(gate, Evidence("argmax_agreement", 0.995, "")).limit.startswith("at least")


def test_estimates_without_an_interval_are_undecided():
    assert one(DROP, Evidence("accuracy_drop", 0.0, "pp", None, 3)).verdict == "undecided"
    assert one(RATIO, Evidence("latency_ratio", 0.1, "ratio", None, 1)).verdict == "undecided"


# --- not measured is not passed ---------------------------------------------------------------------------------------

NAN = math.nan
FAULTS = {
    "nothing measured": None,
    "measurement failed": Evidence("accuracy_drop", None, "pp", error="metric 'accuracy' raised KeyError"),
    "failed without a message": Evidence("accuracy_drop", None, "pp", error=""),
    "failed, yet with a good value": drop(0.0, -0.1, 0.1, error="out of memory"),
    "failed, and called unmeasurable": Evidence("accuracy_drop", None, "pp", error="crash", unmeasurable="no GPU"),
    "no value": Evidence("accuracy_drop", None, "pp"),
    "value NaN": drop(NAN, -0.1, 0.1),
    "low bound NaN": drop(0.0, NAN, 0.1),
    "high bound NaN": drop(0.0, -0.1, NAN),
    "all NaN": drop(NAN, NAN, NAN),
    "infinite": drop(0.0, -math.inf, math.inf),
    "minus infinity": drop(-math.inf, -math.inf, -math.inf),
    "value outside its interval": drop(5.0, -0.1, 0.1),
    "bounds swapped": drop(0.0, 0.1, -0.1),
    "another unit": drop(0.0, -0.1, 0.1, unit="mean_squared_error"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("accepted", [(), ("accuracy",), ("accuracy_drop",)])
def test_no_fault_is_a_pass_even_where_the_metric_may_stay_unmeasured(fault, accepted):
    found = one(DROP, FAULTS[fault], accepted=accepted)
    assert found.verdict == "error" and found.next_step
    assert exit_code(overall([found])) == 2


NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(NUMBERS, st.one_of(st.none(), st.tuples(st.floats(), st.floats())), st.integers(0, 10**6), st.sampled_from(sorted(KINDS)))
def test_a_pass_always_rests_on_finite_numbers_inside_the_limit(value, interval, samples, name):
    kind = KINDS[name]
    gate = Gate(name, 1.0, kind.units[0], machine="here")
    found = one(gate, Evidence(name, value, kind.units[0], interval, samples), fingerprint="here")
    if found.verdict == "pass":
        assert value is not None and math.isfinite(value)
        assert kind.smallest or value <= 1.0
        assert not kind.estimated or (interval is not None and interval[0] <= value <= interval[1] < 1.0)
    if found.verdict == "undecided":
        assert found.next_step


def test_unmeasurable_is_undecided_or_accepted_by_name():
    evidence = Evidence("latency_ratio", None, "ratio", unmeasurable="Core ML runs on a Mac only")
    undecided = one(RATIO, evidence)
    assert undecided.verdict == "undecided" and "unmeasured: {latency: accept}" in str(undecided.next_step)
    assert one(RATIO, evidence, accepted=["latency"]).verdict == "accepted"
    assert one(RATIO, evidence, accepted=["latency_ratio"]).verdict == "accepted"
    assert one(RATIO, evidence, accepted=["accuracy", "peak_memory"]).verdict == "undecided"
    assert one(RATIO, evidence, accepted=["latency"]).verdict != "pass"


def test_accepting_covers_what_is_unmeasurable_and_nothing_that_was_measured():
    slow = Evidence("latency_ratio", 2.0, "ratio", (1.9, 2.1), 100)
    assert one(RATIO, slow, accepted=["latency"]).verdict == "fail"


def test_too_few_latencies_for_a_percentile_say_how_many_it_takes():
    evidence = Evidence("latency_p99", None, "ms", None, 100, unmeasurable="100 latencies do not support it", needed=662)
    found = one(Gate("latency_p99", 5.0, "ms", machine="m"), evidence, fingerprint="m")
    assert found.verdict == "undecided" and "662" in str(found.next_step)


# --- absolute limits --------------------------------------------------------------------------------------------------

P95 = Evidence("latency_p95", 3.0, "ms", (2.9, 3.1), 200)


def test_absolute_latency_is_judged_on_the_declared_machine_alone():
    declared = Gate("latency_p95", 5.0, "ms", machine="abc")
    assert one(declared, P95, fingerprint="abc").verdict == "pass"
    for gate, fingerprint in (
        (declared, "other"),
        (declared, None),
        (Gate("latency_p95", 5.0, "ms"), "abc"),
        (Gate("latency_p95", 5.0, "ms"), None),
    ):
        found = one(gate, P95, fingerprint=fingerprint)
        assert found.verdict == "undecided" and "machine" in str(found.next_step)


# --- combining --------------------------------------------------------------------------------------------------------


def test_the_worst_gate_is_the_verdict_in_any_order():
    ranks = ["error", "fail", "undecided", "pass"]
    for count in range(1, 4):
        for found in itertools.product([*ranks, "accepted"], repeat=count):
            expected = next((rank for rank in ranks[:3] if rank in found), "pass")
            assert overall(found) == expected


def test_exit_codes():
    assert [exit_code(v) for v in ("pass", "fail", "error", "undecided")] == [0, 1, 2, 3]
    assert exit_code("accepted") == exit_code("nonsense") == 2


def test_a_run_that_judged_nothing_is_an_error():
    assert overall([]) == "error" and overall([], ["validated"]) == "error"
    assert judge([], [drop(0, -1, 0.5)]) == ()


@pytest.mark.parametrize("status", ["failed", "unsupported"])
def test_a_broken_target_beats_passing_gates(status):
    assert overall(["pass", "pass"], ["validated", status]) == "error"
    assert overall(["fail"], [status]) == "error"


def test_a_verdict_nobody_knows_is_an_error():
    assert overall(["pass", "skipped"]) == "error"


# --- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("acuracy_drop", 1.0, "pp"),
        ("accuracy_drop", 1.0, "ms"),
        ("accuracy_drop", NAN, "pp"),
        ("latency_ratio", math.inf, "ratio"),
        ("accuracy_drop", 1.0, "pp", 1.0),
        ("accuracy_drop", 1.0, "pp", 95.0),
    ],
)
def test_a_gate_that_cannot_judge_is_refused(arguments):
    with pytest.raises(ConfigError):
        Gate(*arguments)


def test_a_bare_limit_is_in_the_unit_of_the_metric():
    gate = Gate("accuracy_drop", 0.05, "")
    assert one(gate, drop(0.01, 0.0, 0.02, unit="mean_squared_error")).verdict == "pass"
    mixed = one(gate, drop(0.01, 0.0, 0.02, unit="pp"))
    assert mixed.verdict == "error" and "1.0pp" in mixed.observed


def test_gates_against_the_last_release_are_judged_alike():
    gate = Gate("baseline.latency_ratio", 1.05, "ratio")
    assert one(gate, Evidence("baseline.latency_ratio", 1.2, "ratio", (1.1, 1.3), 64)).verdict == "fail"
    away = Evidence("baseline.latency_ratio", None, "ratio", unmeasurable="the baseline is from another machine")
    assert one(gate, away).verdict == "undecided"
