"""`edgepress verify --inputs`: do live inputs still look like the ones the model was calibrated on?"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle import inputs
from edgepress.bundle.npz import load_npz
from edgepress.targets.errors import IntegrityError, MeasurementError

#: A population stability index above a quarter is the field's sign of a shift that needs action (Siddiqi 2006, ch. 11).
PSI_LIMIT = 0.25
#: The shift of a normal distribution that gives a PSI of 0.25, half a standard deviation, moves its distribution function by 0.2.
KS_LIMIT = 0.2


@dataclass(frozen=True)
class InputDrift:
    """One input.

    Attributes:
        verdict: `same`, `drift`, or `undecided`: beyond a limit, and still within what this many samples give by chance.
        psi, ks: distances from the calibration inputs; None where the live input has no finite value.
        psi_chance, ks_chance: what 99 of 100 draws of this many calibration samples stay under.
        outside: share of live values beyond the calibration extremes.
        live, reference: mean, std, min, max and the number of values that are not finite.
        why: in words.
    """

    input: str
    verdict: str
    psi: float | None
    ks: float | None
    psi_chance: float
    ks_chance: float
    outside: float
    live: Mapping[str, Any]
    reference: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Drift:
    """Live inputs against calibration's."""

    file: str
    samples: int
    inputs: tuple[InputDrift, ...]

    @property
    def verdict(self) -> str:
        """The worst of its inputs."""
        found = {item.verdict for item in self.inputs}
        return next(verdict for verdict in ("drift", "undecided", "same") if verdict in found)


def compare_inputs(bundle: Path, file: Path) -> Drift:
    """Compare the arrays of an .npz, one per model input, with the reference statistics of a bundle.

    Raises:
        MeasurementError: the file is no .npz with these inputs in their shapes.
        IntegrityError: the bundle has no reference statistics.
    """
    try:
        reference = json.loads((bundle / inputs.NAME).read_text("utf-8"))
        known = dict(reference["inputs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Make the bundle again with this version."
        raise IntegrityError(f"{str(bundle)!r} has no reference statistics", f"{inputs.NAME}: {error}", remedy) from error
    live = _read(file, known)
    samples = len(next(iter(live.values())))
    return Drift(str(file), samples, tuple(_compare(name, facts, live[name]) for name, facts in known.items()))


def _read(file: Path, known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    wanted = ", ".join(f"{name}: {facts['dtype']} (N, {', '.join(map(str, facts['shape']))})" for name, facts in known.items())
    remedy = f"Write it with numpy.savez; this bundle wants {wanted}."
    try:
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz archive")
        live = load_npz(file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise MeasurementError(f"inputs {str(file)!r} cannot be read", str(error), remedy) from error
    if missing := sorted(known.keys() - live.keys()):
        raise MeasurementError(f"inputs {str(file)!r} lack {missing[0]!r}", f"it holds {', '.join(live) or 'nothing'}", remedy)
    for name, facts in known.items():
        value, numeric = live[name], "iub" if np.dtype(facts["dtype"]).kind in "iub" else "iubf"
        if value.dtype.kind not in numeric or list(value.shape[1:]) != facts["shape"] or not len(value):
            raise MeasurementError(f"input {name!r} of {str(file)!r} is {value.dtype} {value.shape}", "this model takes another", remedy)
    if len({len(live[name]) for name in known}) > 1:
        raise MeasurementError(f"inputs {str(file)!r} have different numbers of samples", "", remedy)
    return {name: live[name] for name in known}


def _compare(name: str, facts: Mapping[str, Any], values: np.ndarray) -> InputDrift:
    found = inputs.moments(values)
    keys = ("mean", "std", "min", "max", "not_finite")
    shown = {key: found[key] for key in keys}, {key: facts[key] for key in keys}
    chance = [row for row in facts.get("chance", ()) if row["samples"] <= len(values)]
    if not found["values"] or not chance:
        why = "no value is finite" if chance else "calibration had no finite value"
        return InputDrift(name, "drift", None, None, 0.0, 0.0, 1.0, *shown, why)
    fine = inputs.histogram(values, np.array(facts["histogram"]["edges"])).sum(axis=0)
    counts, groups = np.array(facts["histogram"]["counts"]), facts["histogram"]["groups"]
    index, live = inputs.coarse(counts, groups), inputs.coarse(fine, groups)
    if "frequencies" in facts:
        index = np.array(facts["frequencies"]["counts"])
        live = inputs.frequencies(values, np.array(facts["frequencies"]["values"])).sum(axis=0)
    psi, ks = float(inputs.population_stability(index, live)), float(inputs.kolmogorov_smirnov(counts, fine))
    limits = chance[-1]["psi"], chance[-1]["ks"]
    outside = float(fine[0] + fine[-1]) / float(fine.sum())
    verdict, why = _judged(psi, ks, *limits, len(values))
    if found["not_finite"] and not facts["not_finite"]:
        verdict, why = "drift", f"{found['not_finite']} values are not finite; calibration had none"
    return InputDrift(name, verdict, psi, ks, *limits, outside, *shown, why)


def _judged(psi: float, ks: float, psi_chance: float, ks_chance: float, samples: int) -> tuple[str, str]:
    measures = (("PSI", psi, PSI_LIMIT, psi_chance), ("KS", ks, KS_LIMIT, ks_chance))
    beyond = [item for item in measures if item[1] > item[2]]
    if not beyond:
        return "same", f"PSI {psi:.3f} of {PSI_LIMIT}, KS {ks:.3f} of {KS_LIMIT}"
    sure = [item for item in beyond if item[1] > item[3]]
    label, value, limit, by_chance = (sure or beyond)[0]
    if sure:
        return "drift", f"{label} {value:.3f}, limit {limit}"
    return "undecided", f"{label} {value:.3f}, limit {limit}; with {samples} samples chance gives up to {by_chance:.3f}: take more samples"
