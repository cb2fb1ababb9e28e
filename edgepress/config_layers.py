"""What a recipe says about candidates and single layers: `method: best`, fallback to float, and precisions by budget."""

from __future__ import annotations

from collections.abc import Sequence

from edgepress.config_steps import QuantizeConfig, Step
from edgepress.config_targets import TargetEntry
from edgepress.config_yaml import Place, Source
from edgepress.targets.rules import rules_for

#: The precision whose layers have precisions of their own.
MIXED = "mixed"
_STATIC = ("static", "static-matmul")


def check_layers(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """`fallback` and `budget` stand in a recipe whose targets can follow them.

    Raises:
        ConfigError: they cannot; or a target is `mixed` without a budget.
    """
    places = [(step, ("compress", i, "quantize")) for i, step in enumerate(steps) if isinstance(step, QuantizeConfig)]
    for entry in targets:
        if entry.overrides.precision == MIXED and not places:
            what = f"target {entry.name!r} is {MIXED}, and no quantize step gives a budget"
            raise source.error((*entry.place, "precision"), what, f"Add `- quantize: {{precision: {MIXED}, budget: {{size: 0.5x}}}}`.")
    for step, place in places:
        precisions = {entry.overrides.precision or step.precision for entry in targets}
        if step.fallback:
            _check_static(step, "int8" in precisions, source, (*place, "fallback"), "`fallback` keeps layers of calibrated int8 in float")
        if MIXED in precisions and step.budget is None:
            raise source.error((*place, "precision"), f"{MIXED} needs a budget", "Add e.g. `budget: {size: 0.5x}`.")
        if step.budget is not None:
            what = f"`budget` divides layers between calibrated int8 and float for precision {MIXED}"
            _check_static(step, MIXED in precisions, source, (*place, "budget"), what)
        for bits, wanted in ((4, step.int4), (2, step.int2)):
            if wanted is not None:
                _check_narrow(step, bits, wanted, targets, source, (*place, f"int{bits}"))


def _check_static(step: QuantizeConfig, wanted: bool, source: Source, place: Place, what: str) -> None:
    """Some target has integers with calibrated ranges, and they are not trained.

    Raises:
        ConfigError: it has not, or they are.
    """
    precision = "int8" if place[-1] == "fallback" else MIXED
    if not wanted:
        raise source.error(place, f"{what}, and no target has it", f"Set precision: {precision}, or leave it out.")
    if step.scheme not in ("auto", *_STATIC):
        raise source.error(place, f"{what}, and scheme {step.scheme} has none", f"Use scheme: auto, {' or '.join(_STATIC)}.")
    if step.method == "qat":
        raise source.error(place, f"{what}, and method qat trains with all of them in integers", "Use method: ptq, or leave it out.")


def _check_narrow(step: QuantizeConfig, bits: int, wanted: bool, targets: Sequence[TargetEntry], source: Source, place: Place) -> None:
    """Some target is `mixed`, and where 4 or 2 bits are required all of these can store them.

    Raises:
        ConfigError: none is, or one cannot.
    """
    mixed = [entry for entry in targets if (entry.overrides.precision or step.precision) == MIXED]
    if not mixed:
        what = f"`{place[-1]}` lets layers of precision {MIXED} have {bits}-bit weights, and no target has it"
        raise source.error(place, what, f"Set precision: {MIXED}, or leave it out.")
    for entry in mixed:
        rules = rules_for(entry.entry.runtime)
        if wanted and bits not in rules.static_bits:
            kept = f"8 bits and float (fp{8 * rules.float_bytes})"
            other = "; all its linear layers have 4 bits with precision int4-weights" if rules.int4 else ""
            what = f"target {entry.name!r} cannot store single layers in {bits} bits: precision {MIXED} has {kept} there{other}"
            raise source.error(place, what, f"Leave `{place[-1]}` out, or take {entry.name} out of `targets:`.")


def check_best(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """`method: best` stands in a recipe with an int8 target, beside nothing that names the scheme itself.

    Raises:
        ConfigError: it does not.
    """
    for i, step in enumerate(steps):
        if not isinstance(step, QuantizeConfig) or step.method != "best":
            continue
        place = ("compress", i, "quantize")
        if not any((entry.overrides.precision or step.precision) == "int8" for entry in targets):
            what = "method best compares ways to int8, and no target has it"
            raise source.error((*place, "method"), what, "Set precision: int8, or method: ptq.")
        if step.scheme != "auto":
            what = f"method best compares all schemes, and scheme {step.scheme} names one"
            raise source.error((*place, "scheme"), what, "Use scheme: auto, or method: ptq.")
        if step.fallback:
            what = "method best compares whole files, and `fallback` keeps layers of one in float"
            raise source.error((*place, "fallback"), what, "Use method: ptq, or leave it out.")
