"""A report as sentences and rows: what every rendering (page, terminal, Markdown, JUnit) has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepress.bundle.digest import loaded_bytes
from edgepress.report import numbers

Json = Mapping[str, Any]

#: From worst to best; a run's verdict is its worst gate.
RANK = ("error", "fail", "undecided", "waived", "accepted", "pass")
WORDS = {
    "pass": "passed",
    "fail": "failed",
    "undecided": "could not be decided",
    "waived": "did not pass, let through by someone until a day",
    "accepted": "not measured, accepted by the recipe",
    "error": "could not be judged",
}


@dataclass(frozen=True)
class TargetView:
    """One target of a report, with what is derived from it.

    Attributes:
        data: the entry of `targets`.
        verdict: the worst of its gates as people see them (`shown_verdict`), `error` where it failed, is unsupported or nothing judged it.
        loaded_bytes: what one device loads (of an artifact with a file per kind of device the largest), None without an artifact.
        size_ratio: `loaded_bytes` over the size of the fp32 original.
        integer_share: share (0..1) of multiply-accumulates in integers, None where the runtime does not say.
    """

    data: Json
    verdict: str
    loaded_bytes: int | None
    size_ratio: float | None
    integer_share: float | None

    @property
    def name(self) -> str:
        """The target's name."""
        return str(self.data["name"])

    @property
    def scheme(self) -> str:
        """What was shipped, e.g. `int8 static`; the precision asked for where nothing was."""
        return str((self.data.get("scheme") or {}).get("label") or self.data["precision"])

    @property
    def executed_by(self) -> str:
        """What computed the outputs, or that nothing did."""
        return str(self.data["executed_by"] or "not executed")

    def gates(self, *verdicts: str) -> list[Json]:
        """Its gates, those that are shown as one of `verdicts` if any are given."""
        return [gate for gate in self.data["gates"] if not verdicts or shown_verdict(gate) in verdicts]

    def gate(self, *names: str) -> Json | None:
        """The first of its gates that has one of these names."""
        return next((gate for name in names for gate in self.data["gates"] if gate["name"] == name), None)


def views(report: Json) -> list[TargetView]:
    """Every target, in the order of the recipe."""
    return [_view(target, report["reference"]["size_bytes"]) for target in report["targets"]]


def shown_verdict(gate: Json) -> str:
    """The verdict of a gate in the word people see: a report carries what was waived as `accepted`, with the waiver beside it."""
    return "waived" if gate.get("waiver") else str(gate["verdict"])


def target_verdict(target: Json) -> str:
    """The worst of a target's gates; `error` where it failed or is unsupported, and where nothing that is known judged it."""
    return _worst(target, {str(gate["verdict"]) for gate in target["gates"]})


def shown_target_verdict(target: Json) -> str:
    """The same in the word people see."""
    return _worst(target, {shown_verdict(gate) for gate in target["gates"]})


def _worst(target: Json, verdicts: set[str]) -> str:
    if target["status"] in ("failed", "unsupported") or not verdicts or not verdicts <= set(RANK):
        return "error"
    return next(verdict for verdict in RANK if verdict in verdicts)


def unjudged(row: TargetView) -> str | None:
    """Why a target as a whole could not be judged; None where its gates say what there is to say."""
    if row.data["error"]:
        return str(row.data["error"])
    if row.verdict != "error" or row.gates("error"):
        return None
    if not row.gates():
        return f"{row.name!r} has no gate, so nothing judged it"
    return f"the status of {row.name!r} is {row.data['status']}, and its gates say {', '.join(sorted({g['verdict'] for g in row.gates()}))}"


def drop_unit(report: Json) -> str:
    """The unit of every `drop` in this report, as people read it: empty where it is the metric's own and has no name but the metric's."""
    metric = report["reference"]["metric"]
    unit = str(metric.get("drop_unit", "pp"))
    return "" if unit == metric["name"] else unit


def headline(report: Json) -> str:
    """Why the verdict is what it is, in one sentence."""
    rows = views(report)
    verdict = report["verdict"]
    if verdict == "error":
        return _error_sentence(rows)
    if verdict == "pass":
        return _pass_sentence(rows)
    found = [(row, gate) for row in rows for gate in row.gates(verdict)]
    if not found:
        return f"The run's verdict is {verdict}."
    row, gate = found[0]
    others = len(found) - 1
    what = "failed" if verdict == "fail" else "undecided"
    more = f" {_count(others, 'more gate')} {_word(others, 'is', 'are')} {what}." if others else ""
    return f"{row.name}: {gate_sentence(gate)}.{more}"


def problems(report: Json) -> Iterator[tuple[TargetView, str, str, str | None]]:
    """(target, verdict, what is wrong, next step) of everything that is no pass, the worst first."""
    rows = views(report)
    for verdict in ("error", "fail", "undecided", "waived", "accepted"):
        for row in rows:
            if verdict == "error" and (why := unjudged(row)):
                yield row, "error", why, None
            for gate in row.gates(verdict):
                yield row, verdict, gate_sentence(gate), gate["next_step"]


def gate_sentence(gate: Json) -> str:
    """`accuracy_drop is 1.40 pp, limit: at most 1.00 pp`; of a waived gate by whom, until when and why too."""
    text = f"{gate['name']} is {gate['observed']}, limit: {gate['limit']}"
    return f"{text}; {waiver_sentence(gate)}" if gate.get("waiver") else text


def waiver_sentence(gate: Json) -> str:
    """`fail, waived by jane until 2026-12-31: the new kernel comes in May`."""
    waiver = gate["waiver"]
    return f"{waiver['verdict']}, waived by {waiver['owner']} until {waiver['expires']}: {waiver['reason']}"


def baseline_sentence(target: Json) -> str | None:
    """What a target was compared with; None where there is no such release."""
    entry = (target.get("against_baseline") or {}).get("entry")
    return f"accepted {entry['accepted'][:10]} by {entry['accepted_by']}: {entry['reason']}" if entry else None


def compressed_sentence(report: Json) -> str | None:
    """Where the smaller model lies for PyTorch, and in which form; None where nothing was pruned."""
    found = report.get("compressed")
    if not found:
        return None
    form = "your own class" if found["route"] == "class" else f"the exported graph, because {found['why']}"
    return f"For PyTorch: {found['path']}, {form}"


def diverged_sentences(report: Json) -> list[str]:
    """Trainings that ended because their loss was not finite, with what was kept and what to try."""
    trained = [(stage["name"], stage["report"]) for stage in report["stages"] if "report" in stage]
    return [f"{name} diverged: {found['remarks'][-1]}" for name, found in trained if found.get("stopped") == "diverged"]


#: Below this a file computes another thing than what it was made from; 8-bit kernels that round a step apart give 30 dB and more.
_STRANGE_DB = 20.0


def parity_sentences(report: Json) -> list[str]:
    """Targets whose files are far from the model that they were made from, which a drop in accuracy alone would not say."""
    found = []
    for target in report["targets"]:
        parity = target.get("parity")
        if parity and parity.get("sqnr_db") is not None and not parity["sqnr_db"] >= _STRANGE_DB:
            source = parity.get("against", "model")
            found.append(
                f"{target['name']}: the file's outputs are {parity['sqnr_db']:.1f} dB from those of the {source} that it was made from. "
                f"Its converter or its runtime computes otherwise, or the model magnifies what rounding leaves: "
                f"`edgepress explain` with this run and target shows the layers"
            )
    return found


#: Latency that stays this much above the share of multiply-accumulates left has not followed them.
_LAGS = 1.25


def pruned_sentences(report: Json) -> list[str]:
    """What pruning alone bought in every runtime, in float; and where latency did not follow the multiply-accumulates."""
    timed = {t["name"]: t["pruned_latency_ratio"]["value"] for t in report["targets"] if t.get("pruned_latency_ratio")}
    if not timed:
        return []
    last = [stage for stage in report["stages"] if "report" in stage][-1]
    share = last["macs"] / report["reference"]["macs"]
    ratios = ", ".join(f"{name} {numbers.ratio(ratio)}" for name, ratio in timed.items())
    found = [f"Latency of the pruned float model over the original's, with {numbers.ratio(share)} of its multiply-accumulates: {ratios}"]
    slow = [name for name, ratio in timed.items() if ratio > share * _LAGS]
    if slow and not any(stage["report"].get("budget") == "latency" for stage in report["stages"] if "report" in stage):
        budget = f"latency: {{target: {slow[0]}, ratio: {share:.1f}x}}"
        found.append(f"In {', '.join(slow)} latency did not fall as far: prune to it instead, e.g. {budget}")
    return found


#: The last step of a target: what its artifact loses against the float model it was made of.
_SHIPPING = "export as"


def attribution(report: Json, target: Json) -> list[tuple[str, float]]:
    """What every step cost a target: (step, drop it added), in the order of the run; their sum is the target's drop.

    What quantization and the runtime cost is one number: the artifact against the float model that it was made of.
    """
    if not target["metric"]:
        return []
    found, before = [], 0.0
    for stage in report["stages"]:
        if "report" in stage:
            found.append((str(stage["name"]), stage["drop"] - before))
            before = stage["drop"]
    return [*found, (f"{_SHIPPING} {scheme_label(target.get('scheme') or target['precision'])}", target["metric"]["drop"] - before)]


def scheme_label(value: str | Json) -> str:
    """The label of a scheme given as text or as `{"label", "kind"}`."""
    return value if isinstance(value, str) else str(value["label"])


def unmeasured(target: Json) -> list[tuple[str, str]]:
    """(what, why) of what this machine cannot measure, or the recipe accepts unmeasured, for a target."""
    found = target.get("unmeasured") or {}
    if isinstance(found, Mapping):
        return [(str(name), str(why)) for name, why in found.items()]
    accepted = {gate["name"] for gate in target["gates"] if shown_verdict(gate) == "accepted"}
    return [(str(name), "accepted by the recipe") for name in found] if accepted else []


def _view(target: Json, reference_bytes: int) -> TargetView:
    artifact = target["artifact"]
    share = target.get("integer_share_of_macs")
    kernels = target["kernels"] or {}
    if share is None and kernels.get("float_share_of_macs") is not None:
        share = 1 - kernels["float_share_of_macs"]
    loaded = loaded_bytes(artifact["size_bytes"], target.get("facts")) if artifact else None
    ratio = loaded / reference_bytes if loaded is not None and reference_bytes else None
    return TargetView(target, shown_target_verdict(target), loaded, ratio, share)


def _error_sentence(rows: Sequence[TargetView]) -> str:
    lost = [row for row in rows if row.verdict == "error"]
    if not lost:
        return "The run could not be judged."
    first = lost[0]
    gates = first.gates("error")
    why = unjudged(first) or gate_sentence(gates[0])
    more = f" {_count(len(lost) - 1, 'more target')} could not be judged." if len(lost) > 1 else ""
    text = str(why).rstrip(".")
    text = text[:1].upper() + text[1:] if repr(first.name) in text else f"{first.name} could not be judged: {text}"
    return f"{text}.{more}"


def _pass_sentence(rows: Sequence[TargetView]) -> str:
    gates = sum(len(row.gates("pass")) for row in rows)
    text = f"{_count(len(rows), 'target')} {_word(len(rows), 'holds', 'hold')} {_count(gates, 'gate')}."
    waived, accepted = _named(rows, "waived"), _named(rows, "accepted")
    if waived:
        text += f" Waived, and no pass: {waived}."
    if accepted:
        text += f" Not measured on this machine, and accepted by the recipe: {accepted}."
    return text


def _named(rows: Sequence[TargetView], verdict: str) -> str:
    """`latency_ratio (tensorrt, coreml)` of every gate with a verdict."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for gate in row.gates(verdict):
            found.setdefault(gate["name"], []).append(row.name)
    return ", ".join(f"{name} ({', '.join(targets)})" for name, targets in found.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _word(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
