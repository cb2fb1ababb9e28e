"""Which layers of a target are in integers and which in float: as sentences, and as a picture of what each layer's integers cost."""

from __future__ import annotations

import math

from edgepress.report import numbers
from edgepress.report.pictures import LEFT, RIGHT, TOP, Mark, Picture
from edgepress.report.present import Json, drop_unit

#: Height of one layer in the picture, in SVG user units.
_ROW = 18.0
_LABEL_LETTERS = 15
_NAMED = 6
#: Decades of noise that a bar may be long: a layer quieter than that beside the loudest has none.
_DECADES = 6
#: Bits of a layer -> the verdict whose colour its bar has.
_COLOURS = {32: "accepted", 8: "pass", 4: "undecided", 2: "waived"}
_ON = "on training samples kept apart"


def layer_sentences(report: Json) -> list[str]:
    """For every target that kept layers in float, or had a precision chosen for each: which, and whether the goal was met."""
    unit = drop_unit(report)
    found = []
    for target in report["targets"]:
        if fallback := target.get("fallback"):
            found.append(f"{target['name']}: {_fallback(fallback, unit, shipped=target.get('scheme'))}")
        if mixed := target.get("mixed"):
            found.append(f"{target['name']}: {_mixed(mixed, unit)}")
    return found


def _fallback(fallback: Json, unit: str, shipped: Json | None) -> str:
    count = len(fallback["layers"])
    what = f"{count} layer{'' if count == 1 else 's'} in float ({_names(fallback['layers'])})" if count else "no layer in float"
    drop = f"drop of {numbers.drop(fallback['drop'], unit)} {_ON}"
    tried = f"{len(fallback['tried'])} sets tried"
    if fallback["met"]:
        return f"{what}: {drop}, within max_drop ({tried})"
    other = shipped is not None and not shipped["label"].startswith(fallback["scheme"])
    return f"fallback did not meet max_drop; its best has {what}, {drop} ({tried})" + (
        f"; {shipped['label']} was shipped" if other and shipped else ""
    )


def _mixed(mixed: Json, unit: str) -> str:
    layers = mixed["layers"]
    kept = [layer["layer"] for layer in layers if layer["bits"] > 8]
    (name, value), *_ = mixed["budget"].items()
    limit = f"a drop of {numbers.drop(value, unit)}" if name == "accuracy_drop" else f"{name} {value:.3g}x of the float original's"
    names = f" ({_names(kept)})" if kept else ""
    counts = {bits: sum(layer["bits"] == bits for layer in layers) for bits in (4, 2)}
    narrow = " and ".join(f"{count} with {bits}-bit weights" for bits, count in counts.items() if count)
    packed = f", {narrow}," if narrow else ""
    return f"{len(kept)} of {len(layers)} layers in float{names}{packed} within {limit}: drop of {numbers.drop(mixed['drop'], unit)} {_ON}"


def _names(layers: list[str]) -> str:
    return ", ".join([*layers[:_NAMED], *([f"and {len(layers) - _NAMED} more"] if len(layers) > _NAMED else [])])


def layer_picture(target: Json) -> Picture | None:
    """Bits and sensitivity of every layer in the order of the model; None where no precision was chosen per layer."""
    mixed = target.get("mixed")
    if not mixed:
        return None
    layers = mixed["layers"]
    loudest = max((_noise(layer) for layer in layers), default=0.0) or 1.0
    top = math.ceil(math.log10(loudest))

    def place(noise: float) -> float:
        share = 0.0 if noise <= 0 else (math.log10(noise) - top + _DECADES) / _DECADES
        return round(LEFT + min(max(share, 0.0), 1.0) * (RIGHT - LEFT), 1)

    marks = tuple(
        Mark(
            label=_short(layer["layer"]),
            verdict=_COLOURS[layer["bits"]],
            y=TOP + _ROW * (index + 0.5),
            x=place(_noise(layer)),
            low=None,
            high=None,
            limit=None,
            text=_words(layer),
        )
        for index, layer in enumerate(layers)
    )
    ticks = tuple((place(10.0**power), f"1e{power}") for power in range(top - _DECADES, top + 1, 2))
    words = " ".join(f"{layer['layer']}: {_words(layer)}, {_noise(layer):.2g}." for layer in layers)
    narrow = any(layer["bits"] < 8 for layer in layers)
    bits = "the bits that it has, in 8 where it is in float" if narrow else "8 bits"
    caption = f"Noise over signal at the outputs with this layer alone in {bits}. Left is quieter."
    if any(layer.get("float_latency") is not None for layer in layers):
        caption += " Percent: what float takes longer there than integers, of the float original's time."
    title = f"Precision of every layer, {target['name']}"
    return Picture(title, caption, True, marks, ticks, LEFT, None, "", TOP + _ROW * len(layers) + 26, f"{title}. {caption} {words}")


def _noise(layer: Json) -> float:
    """What the layer's integers cost: those that it has, or the 8 bits that it was spared."""
    return float(layer[{4: "int4_sensitivity", 2: "int2_sensitivity"}.get(layer["bits"], "sensitivity")])


def _words(layer: Json) -> str:
    """Its precision, and what float costs it on the target where that was measured."""
    bits, cost = f"{layer['bits']} bits", layer.get("float_latency")
    if cost is None:
        return f"float, {bits}" if layer["bits"] > 8 else bits
    return f"{'float' if layer['bits'] > 8 else bits}, {100 * cost:+.1f} %"


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LETTERS else f"…{name[1 - _LABEL_LETTERS :]}"
