"""Precisions chosen per layer against one precision for all layers: size and drop of the files, per runtime.

    EDGEPRESS_CASES=… python benchmarks/quantization/mixed_front.py [--case resnet56 minilm] [--runtime onnxruntime openvino]
        [--budget 0.5 0.35 0.25] [--unseen 4096] [--store FOLDER] [--svg FILE]

Budgets are shares of the fp16 file of the same runtime. All rows have the same placement of integer activations and the same rounding
(GPTQ); `8 bits`, `4 bits` and `2 bits` give every layer the same weights, `4 bits` and `2 bits` being the smallest files there are with
and without `int2: false`: what the refusal of an impossible budget names. Everything is chosen on training samples; drop and interval are
of the whole validation set, run once per file. `unseen` is of training samples that took part in nothing (`unseen.py`). The columns `line`
say where the straight line between the uniform models of a size just below and just above lies. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import yaml
from unseen import Unseen

from edgepress.compress.project.collect import Shares
from edgepress.config import load, recipe
from edgepress.engine import open_store
from edgepress.live import Live
from edgepress.pipeline import Pipeline
from edgepress.results import Prepared, TargetRun, loaded_bytes
from edgepress.step import Runner
from edgepress.steps.arrays import load_outputs
from edgepress.targets.nouns import Signature

#: Case -> folder of the case, factory, and the scheme that its integers have.
CASES = {"resnet56": ("cifar10", "resnet56", "static"), "minilm": ("sst2", "minilm", "static-matmul")}
CALIBRATION, SELECTION = 512, 512
#: The largest drop that is drawn, in percentage points.
_LOWEST = 3.0


@dataclass(frozen=True)
class Point:
    """One file.

    Attributes:
        size: in bytes.
        drop, low, high: in percentage points, with the interval.
        sqnr: power of the float model's outputs over that of the error, in dB, over the validation set.
        unseen, other: drop on training samples that took part in nothing, and how many of them get another class than in float; percent.
        bits: how many layers have which.
    """

    label: str
    uniform: bool
    size: int
    drop: float
    low: float
    high: float
    sqnr: float
    unseen: float
    unseen_low: float
    unseen_high: float
    other: float
    bits: str = ""


class Case:
    """One model in one runtime."""

    def __init__(self, name: str, runtime: str, cases: Path, work: Path, unseen: int) -> None:
        self._folder, self._factory, self._scheme = CASES[name]
        self._name, self._runtime, self._cases, self._work = name, runtime, cases, work
        self._prepared: Prepared
        self._count, self._exact = unseen, np.empty(0)
        self._unseen: Unseen | None = None

    def run(self, **quantize: Any) -> TargetRun:
        """The target of a recipe, compressed and scored on the validation set; nothing is timed."""
        written = {
            "project": f"{self._name}-front",
            "root": str((self._cases / self._folder).absolute()),
            "model": {"factory": f"model:{self._factory}", "checkpoint": f"{self._factory}.safetensors"},
            "data": {
                "train": "data:train",
                "validation": "data:validation",
                "calibration": {"samples": CALIBRATION, "selection": SELECTION, "seed": 0},
            },
            "metric": "accuracy",
            "compress": [{"quantize": quantize}],
            "targets": [self._runtime],
        }
        path = self._work / f"{self._name}.yaml"
        path.write_text(yaml.safe_dump(written))
        config = load(path)
        plans = recipe(config)
        pipeline = Pipeline(config, plans, Runner(open_store(config), Live(), self._work / "log.txt"))
        self._prepared = pipeline.prepare()
        return pipeline.compress(plans[0], self._prepared)

    def point(self, label: str, run: TargetRun, uniform: bool) -> Point:
        """What a run shipped; its error is raised."""
        if run.error is not None:
            raise run.error
        assert run.chosen is not None and run.chosen.export is not None and run.score is not None
        score, layers = run.score.value, run.mixed["layers"] if run.mixed else []
        bits = ", ".join(f"{count} in {has}" for has in (32, 8, 4, 2) if (count := sum(layer["bits"] == has for layer in layers)))
        change = self._samples().change(self._samples().classes(run.chosen.export), self._exact)
        known = (score["drop"], *score["interval"], self._sqnr(run), change.drop, change.low, change.high, change.other)
        return Point(label, uniform, loaded_bytes(run.chosen.export), *known, bits)

    def _samples(self) -> Unseen:
        if self._unseen is None:
            signature = Signature.from_json(self._prepared.model.value["signature"])
            shares = Shares(CALIBRATION, SELECTION, 0)
            self._unseen = Unseen(self._cases / self._folder, signature, self._runtime, shares, self._count)
        return self._unseen

    def _sqnr(self, run: TargetRun) -> float:
        assert run.execution is not None
        signature = Signature.from_json(self._prepared.model.value["signature"])
        exact = load_outputs(self._prepared.reference.folder / "validation", signature)
        found = load_outputs(run.execution.folder, signature)
        noise = sum(float(np.square(found[name].astype(np.float64) - exact[name]).sum()) for name in exact)
        return 10 * float(np.log10(sum(float(np.square(exact[name].astype(np.float64)).sum()) for name in exact) / noise))

    def integers(self, **quantize: Any) -> TargetRun:
        """Integers with calibrated ranges, rounded by GPTQ."""
        return self.run(scheme=self._scheme, algorithms=["gptq"], **quantize)

    def whole(self) -> int:
        """Bytes of the float original's file."""
        run = self.run(precision="fp32")
        assert run.chosen is not None and run.chosen.export is not None
        self._exact = self._samples().classes(run.chosen.export)
        return loaded_bytes(run.chosen.export)

    def mixed(self, label: str, ratio: float, uniform: bool = False, **more: bool) -> Point | int:
        """The solver's file within a share of the float original's bytes; where none is, how many the smallest has."""
        run = self.integers(precision="mixed", budget={"size": f"{ratio:.9f}x"}, **more)
        smallest = re.search(r"its file has ([\d,]+) bytes", str(run.error))
        return int(smallest[1].replace(",", "")) if smallest else self.point(label, run, uniform)

    def points(self, budgets: Sequence[float]) -> list[Point]:
        """The uniform models and the solver's."""
        whole = self.whole()
        half = self.point("fp16", self.run(precision="fp16"), True)
        found = [half, self.point("8 bits", self.integers(precision="int8"), True)]
        for label, more in (("4 bits", {"int2": False}), ("2 bits", {})):
            least = self.mixed(label, 0.001, **more)
            assert isinstance(least, int), "a thousandth of the file is no budget"
            # to the byte: with any room to spare some layer would get more bits
            found.append(_made(self.mixed(label, (least + 0.5) / whole, uniform=True, **more)))
        for budget in budgets:
            point = self.mixed(f"mixed, {budget:g}x", budget * half.size / whole)
            if isinstance(point, int):
                print(f"{self._name}, {self._runtime}: {budget:g}x of fp16 is refused; the smallest file is {point / half.size:.3f}x\n")
            else:
                found.append(point)
        return found


def _made(point: Point | int) -> Point:
    assert isinstance(point, Point), "the nearest budget can be kept"
    return point


def line(points: Sequence[Point], size: int, quantity: str) -> float | None:
    """A quantity of the uniform models at a size, between two of them on the straight line; None where none is as small."""
    uniform = sorted((point for point in points if point.uniform), key=lambda point: point.size)
    below = [point for point in uniform if point.size <= size]
    above = [point for point in uniform if point.size > size]
    if not below or not above:
        return getattr(below[-1], quantity) if below else None
    share = (size - below[-1].size) / (above[0].size - below[-1].size)
    low, high = (float(getattr(point, quantity)) for point in (below[-1], above[0]))
    return low + share * (high - low)


def table(name: str, runtime: str, points: Sequence[Point]) -> str:
    """Markdown."""
    titles = [
        "weights",
        "bytes",
        "of fp16",
        "layers",
        "drop (95 %)",
        "line",
        "unseen (95 %)",
        "line",
        "another class",
        "line",
        "SQNR",
        "line",
    ]
    lines = [f"**{name}, {runtime}**\n", f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for point in points:
        cells = [point.label, f"{point.size:,}", f"{point.size / points[0].size:.3f}", point.bits]
        said = {
            "drop": ("{:+.2f} pp", f" ({point.low:+.2f} to {point.high:+.2f})"),
            "unseen": ("{:+.2f} pp", f" ({point.unseen_low:+.2f} to {point.unseen_high:+.2f})"),
            "other": ("{:.2f} %", ""),
            "sqnr": ("{:.1f} dB", ""),
        }
        for quantity, (form, interval) in said.items():
            between = None if point.uniform else line(points, point.size, quantity)
            cells += [form.format(getattr(point, quantity)) + interval, "" if between is None else form.format(between)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def svg(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Size against drop: the line of the uniform models, and the solver's, with intervals, down to `_LOWEST`."""
    width, height, left, right, top, bottom = 420.0, 240.0, 56.0, 400.0, 34.0, 200.0
    style = (
        "<style>text{font:11px sans-serif;fill:#333}.a{stroke:#999}.u{stroke:#3f5b86;fill:#3f5b86}.m{stroke:#17703c;fill:#17703c}</style>"
    )
    drawn = [style, f'<clipPath id="panel"><path d="M0 {top}H{width}V{bottom}H0Z"/></clipPath>']
    for index, (title, points) in enumerate(panels):
        low, high = min(0.0, *(point.low for point in points)), min(max(0.5, *(point.high for point in points)), _LOWEST)
        base = points[0].size

        def x(point: Point, base: int = base) -> float:
            return left + (right - left) * min(point.size / base, 1.05) / 1.05

        def y(drop: float, low: float = low, high: float = high) -> float:
            return top + (bottom - top) * (drop - low) / (high - low)

        uniform = sorted((point for point in points if point.uniform), key=lambda point: point.size)
        path = " ".join(f"{x(point):.1f},{y(point.drop):.1f}" for point in uniform)
        drawn.append(
            f'<g transform="translate(0 {index * height:.0f})"><text x="{left}" y="16">{title}: drop (pp, down is worse) by size</text>'
        )
        drawn.append(f'<g clip-path="url(#panel)"><polyline class="u" style="fill:none" points="{path}"/></g>')
        drawn += [
            f'<text x="{left - 6}" y="{y(drop) + 4:.1f}" text-anchor="end">{drop:+.1f}</text>'
            f'<path class="a" d="M{left} {y(drop):.1f}H{right}" stroke-dasharray="2 3"/>'
            for drop in sorted({0.0, round(low, 1), round(high, 1)})
        ]
        for point in (point for point in points if point.high <= _LOWEST):
            colour, at = "u" if point.uniform else "m", x(point)
            drawn.append(f'<path class="{colour}" d="M{at:.1f} {y(point.low):.1f}V{y(point.high):.1f}" opacity=".4"/>')
            drawn.append(f'<circle class="{colour}" cx="{at:.1f}" cy="{y(point.drop):.1f}" r="3.5"><title>{point.label}</title></circle>')
        drawn += [
            f'<text x="{left + (right - left) * share / 1.05:.1f}" y="{bottom + 16}" text-anchor="middle">{share:g}x</text>'
            for share in (0.25, 0.35, 0.5, 1.0)
        ]
        drawn.append("</g>")
    body = "\n".join(drawn)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height * len(panels):.0f}" role="img">\n{body}\n</svg>\n'


def main() -> int:
    """Print a table per case and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--runtime", nargs="+", choices=("onnxruntime", "openvino"), default=["onnxruntime", "openvino"])
    parser.add_argument("--budget", type=float, nargs="+", default=[0.5, 0.35, 0.25], help="shares of the fp16 file")
    parser.add_argument("--unseen", type=int, default=4096, help="training samples that took part in nothing, to compare classes on")
    parser.add_argument("--store", type=Path, help="keeps results between calls; a fresh folder by default")
    parser.add_argument("--svg", type=Path, help="also draw the tables into this file")
    arguments = parser.parse_args()
    cases = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases"))
    if not cases.is_dir():
        print(f"no folder {cases}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    work = arguments.store or Path(mkdtemp(prefix="edgepress-front-"))
    work.mkdir(parents=True, exist_ok=True)
    panels = []
    for name in arguments.case:
        for runtime in arguments.runtime:
            points = Case(name, runtime, cases, work, arguments.unseen).points(arguments.budget)
            panels.append((f"{name}, {runtime}", points))
            print(table(name, runtime, points), flush=True)
    if arguments.svg:
        arguments.svg.write_text(svg(panels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
