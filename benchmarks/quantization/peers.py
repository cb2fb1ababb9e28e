"""Every way to int8 of every runtime, edgepress's and its own quantizer's, on one case: accuracy, interleaved latency, time to make.

    EDGEPRESS_CASES=… python benchmarks/quantization/peers.py [--case resnet20|resnet56|minilm] [--runtime openvino]... [--pairs N|--noise]
    EDGEPRESS_CASES=… python benchmarks/quantization/peers.py --make FOLDER [--case …] [--runtime …]
    python benchmarks/quantization/peers.py --measure FOLDER [--runtime …] [--pairs N]

All see the same 512 training samples. Drops are percentage points on the whole validation set, paired with the float model, with their
95 % interval. `x fp32` is latency over that of the float file in the same runtime, batch 1, 1 thread, in ABBA order with a 95 % bootstrap
interval; where the runtime cannot be timed here it says so. `ours / it` is the same of edgepress's file of the same kind (its first, where
there is none) over a peer's, in interleaved pairs of the two: rows of `x fp32` have a window each. Seconds are wall time of the quantizer
alone on a float file that is there.
`--noise` measures nothing of that but, on training samples kept apart, the noise of the outputs: mean squared difference to the
float model over the outputs' variance, and how many samples have more than one largest output. Prints Markdown.
`--make` leaves all files in a folder and measures nothing; `--measure` takes them up, on another machine too: it needs the runtimes alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.native import native_quantizers
from edgepress.exporters.native.base import NativeRequest
from edgepress.steps.measure import InTurns, Side
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for
from edgepress.validators.intervals import newcombe_paired
from edgepress.validators.latency import LatencyPlan, compare_opened
from edgepress.validators.runtimes import RUNTIMES

CALIBRATION, APART, BATCH, RUN = 512, 2050, 32, 218
RUNTIMES_COMPARED = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")
CASES = {"resnet20": ("cifar10", "input"), "resnet56": ("cifar10", "input"), "minilm": ("sst2", "input_ids", "attention_mask")}
COLUMNS = ("drop (95 %)", "x fp32", "ours / it", "MB", "s")
HEAD = "| runtime | quantizer | {} |\n|{}"
#: What a target of the catalog must be told.
OPTIONS: Mapping[str, Mapping[str, object]] = {"tensorrt": {"compute_capability": ["8.6", "8.9"]}, "coreml": {"minimum_os": "iOS18"}}
#: Where coremltools' reference executor is an interpreter in numpy, the first samples alone.
JUDGED = {"coreml": 1000}


@dataclass(frozen=True)
class File:
    """What a quantizer made, or why it made none; seconds of wall time."""

    tool: str
    kind: str
    folder: Path
    made: Artifact | str
    seconds: float


@dataclass(frozen=True)
class Files:
    """All files of a runtime, the float original apart."""

    original: tuple[Artifact, Path]
    candidates: Iterable[File]


@dataclass(frozen=True)
class Case:
    """A model with its data; arrays by input name, dimension 0 is the sample."""

    program: Path
    statistics: Path
    signature: Signature
    calibration: Mapping[str, np.ndarray]
    apart: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    labels: np.ndarray
    seconds: float

    def target(self, runtime: str, precision: str) -> Target:
        return Target(runtime, runtime, "x86-64 CPU", precision, OPTIONS.get(runtime, {}))

    def request(self, runtime: str, scheme: Scheme) -> ExportRequest:
        samples = tuple(value[:4] for value in self.calibration.values())
        statistics = self.statistics if scheme.kind.startswith("static") else None
        return ExportRequest(self.program, self.signature, statistics, self.target(runtime, scheme.precision), scheme, samples)


def _module(folder: Path, name: str) -> object:
    spec = importlib.util.spec_from_file_location(f"case_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(root: Path, name: str, scratch: Path) -> Case:
    """Model, data and calibration of a case; `seconds` is what calibration took."""
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    folder, inputs = root / CASES[name][0], CASES[name][1:]
    model = getattr(_module(folder, "model"), name)()
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    data = _module(folder, "data")

    def arrays(dataset: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
        pieces = [(x if isinstance(x, (list, tuple)) else [x], y) for x, y in DataLoader(dataset, batch_size=250)]  # type: ignore[arg-type]
        columns = {key: np.concatenate([x[place].numpy() for x, _ in pieces]) for place, key in enumerate(inputs)}
        return columns, np.concatenate([y.numpy() for _, y in pieces])

    train = data.train()  # type: ignore[attr-defined]
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    calibration, _ = arrays(torch.utils.data.Subset(train, order[:CALIBRATION]))
    apart, _ = arrays(torch.utils.data.Subset(train, order[CALIBRATION : CALIBRATION + APART]))
    validation, labels = arrays(data.validation())  # type: ignore[attr-defined]
    example = tuple(torch.from_numpy(value[:2]) for value in calibration.values())
    program = torch.export.export(model.eval(), example, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in example))
    torch.export.save(program, scratch / "model.pt2")
    batches = [tuple(value[i : i + BATCH] for value in calibration.values()) for i in range(0, CALIBRATION, BATCH)]
    began = time.perf_counter()
    calibrate(program, batches).save(scratch / "statistics")
    seconds = time.perf_counter() - began
    specs = tuple(TensorSpec(key, str(value.dtype), (None, *value.shape[1:])) for key, value in calibration.items())
    classes = model(*example).shape[1]
    signature = Signature(specs, (TensorSpec("logits", "float32", (None, classes)),))
    return Case(scratch / "model.pt2", scratch / "statistics", signature, calibration, apart, validation, labels, seconds)


def make(runtime: str, case: Case, base: Path) -> Files:
    """The files of a runtime; candidates are made as they are asked for."""
    return Files(_float_file(runtime, case, base, "fp32"), _candidates(runtime, case, base))


def _candidates(runtime: str, case: Case, base: Path) -> Iterator[File]:
    for kind in rules_for(runtime).ladder:
        folder, began = base / f"edgepress-{kind}", time.perf_counter()
        try:
            made: Artifact | str = EXPORTERS.get(runtime)().export(case.request(runtime, Scheme("int8", kind)), folder)
        except EdgepressError as error:
            made = str(error)
        yield File("edgepress", kind, folder, made, time.perf_counter() - began)
    for name, quantizer in native_quantizers(runtime).items():
        source, where = _float_file(runtime, case, base, quantizer.base_precision)
        for kind in quantizer.kinds:
            folder, scheme, began = base / f"{name}-{kind}", Scheme("int8", kind, tool=name), time.perf_counter()
            try:
                made = quantizer.quantize(NativeRequest(source, where, case.target(runtime, "int8"), scheme, case.calibration), folder)
            except EdgepressError as error:
                made = str(error)
            yield File(name, kind, folder, made, time.perf_counter() - began)


def keep(files: Files, base: Path) -> None:
    """Write beside a runtime's files what each of them is."""
    original, where = files.original
    rows = [
        asdict(file) | {"folder": file.folder.name, "made": file.made if isinstance(file.made, str) else file.made.to_json()}
        for file in files.candidates
    ]
    content = {"original": [original.to_json(), where.name], "candidates": rows}
    (base / "files.json").write_text(json.dumps(content))


def kept(base: Path) -> Files:
    """What `keep` wrote about."""
    content = json.loads((base / "files.json").read_text())
    rows = content["candidates"]
    made = [row["made"] if isinstance(row["made"], str) else Artifact.from_json(row["made"]) for row in rows]
    found = [File(**row | {"folder": base / row["folder"], "made": each}) for row, each in zip(rows, made, strict=True)]
    return Files((Artifact.from_json(content["original"][0]), base / content["original"][1]), found)


def _float_file(runtime: str, case: Case, base: Path, precision: str) -> tuple[Artifact, Path]:
    folder = base / precision
    return EXPORTERS.get(runtime)().export(case.request(runtime, Scheme(precision, "float")), folder), folder


def outputs(runtime: str, artifact: Artifact, folder: Path, samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """What an artifact answers, (samples, classes); the first `JUDGED` of a runtime alone."""
    total = min(JUDGED.get(runtime, sys.maxsize), *(len(value) for value in samples.values()))
    found = []
    with RUNTIMES.get(runtime)().open(artifact, folder) as session:
        for start in range(0, total, RUN):
            piece = {key: value[start : min(start + RUN, total)] for key, value in samples.items()}
            found.append(next(iter(session.run(piece).values())))
    return np.concatenate(found)


def right(runtime: str, artifact: Artifact, folder: Path, samples: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Which samples an artifact classifies as labelled, bool (n,)."""
    classes = outputs(runtime, artifact, folder, samples).argmax(1)
    result: np.ndarray = classes == labels[: len(classes)]
    return result


def noise(runtime: str, file: File, samples: Mapping[str, np.ndarray], exact: np.ndarray) -> str:
    """Mean squared error of the outputs over their variance, and samples with more than one largest output."""
    assert isinstance(file.made, Artifact)
    found = outputs(runtime, file.made, file.folder, samples)
    ties = ((found == found.max(1, keepdims=True)).sum(1) > 1).sum()
    return f"{np.square(found - exact).mean() / exact.var(0).mean():.5f} | {ties}"


def drop(before: np.ndarray, after: np.ndarray) -> str:
    counts = (int((before & after).sum()), int((before & ~after).sum()), int((~before & after).sum()), int((~before & ~after).sum()))
    low, high = newcombe_paired(*counts, confidence=0.95)
    return f"{100 * (before.mean() - after.mean()):+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f})"


def ratio(runtime: str, pair: tuple[tuple[Artifact, Path], tuple[Artifact, Path]], samples: Mapping[str, np.ndarray], pairs: int) -> str:
    """Latency of the first over the second."""
    if RUNTIMES.get(runtime)().timing_unavailable() is not None:
        return "not timed here"
    sample = {key: value[:1] for key, value in samples.items()}
    opener = RUNTIMES.get(runtime)()
    new, old = (Side(artifact, folder, sample) for artifact, folder in pair)
    result = compare_opened(InTurns(opener, new, old, threads=1), plan=LatencyPlan(min_pairs=pairs, max_pairs=pairs, seconds=240))
    return f"{result.ratio:.3f} ({result.interval[0]:.3f} to {result.interval[1]:.3f})"


def size(artifact: Artifact, folder: Path) -> int:
    path = folder / artifact.path
    files = path.rglob("*") if path.is_dir() else [path, *(folder / name for name in artifact.extra)]
    return sum(file.stat().st_size for file in files if file.is_file())


def report_noise(runtime: str, files: Files, samples: Mapping[str, np.ndarray]) -> None:
    """Rows of a runtime's noise."""
    exact = outputs(runtime, *files.original, samples)
    for file in files.candidates:
        cells = file.made if isinstance(file.made, str) else noise(runtime, file, samples, exact)
        print(f"| {runtime} | {file.tool}, {file.kind} | {cells} |", flush=True)


def report(runtime: str, files: Files, samples: Mapping[str, np.ndarray], labels: np.ndarray, pairs: int) -> None:
    """Rows of what a runtime's files lose, take and weigh."""
    before = right(runtime, *files.original, samples, labels)
    ours: dict[str, tuple[Artifact, Path]] = {}
    for file in files.candidates:
        cells = f"| {runtime} | {file.tool}, {file.kind} |"
        if isinstance(file.made, str):
            print(f"{cells} failed: {file.made} | | | | {file.seconds:.1f} |", flush=True)
            continue
        it, direct = (file.made, file.folder), ""
        lost = drop(before, right(runtime, *it, samples, labels))
        timed = ratio(runtime, (it, files.original), samples, pairs)
        if file.tool == "edgepress":
            ours[file.kind] = it
        elif ours:
            direct = ratio(runtime, (ours.get(file.kind, next(iter(ours.values()))), it), samples, pairs)
        print(f"{cells} {lost} | {timed} | {direct} | {size(*it) / 1e6:.2f} | {file.seconds:.1f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), default="resnet20")
    parser.add_argument("--runtime", action="append", choices=RUNTIMES_COMPARED, help="default: all")
    parser.add_argument("--pairs", type=int, default=200, help="interleaved pairs per ratio")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--noise", action="store_true", help="noise of the outputs on training samples instead")
    what.add_argument("--make", type=Path, metavar="FOLDER", help="leave all files there and measure nothing")
    what.add_argument("--measure", type=Path, metavar="FOLDER", help="measure the files that --make left there")
    arguments = parser.parse_args()
    runtimes = arguments.runtime or RUNTIMES_COMPARED
    if arguments.measure is not None:
        pack = dict(np.load(arguments.measure / "validation.npz"))
        labels = pack.pop("labels")
        print(HEAD.format(" | ".join(COLUMNS), "---|" * (2 + len(COLUMNS))), flush=True)
        for runtime in runtimes:
            report(runtime, kept(arguments.measure / runtime), pack, labels, arguments.pairs)
        return 0
    root = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases"))
    if not (root / CASES[arguments.case][0]).is_dir():
        print(f"no folder {root / CASES[arguments.case][0]}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    with TemporaryDirectory() as temporary:
        case = load_case(root, arguments.case, Path(temporary))
        print(f"calibration of edgepress, once for all runtimes: {case.seconds:.1f} s\n")
        if arguments.make is not None:
            for runtime in runtimes:
                keep(make(runtime, case, arguments.make / runtime), arguments.make / runtime)
            arrays: dict[str, Any] = {**case.validation, "labels": case.labels}
            np.savez_compressed(arguments.make / "validation.npz", **arrays)
            return 0
        columns = ("noise", "ties") if arguments.noise else COLUMNS
        print(HEAD.format(" | ".join(columns), "---|" * (2 + len(columns))), flush=True)
        for runtime in runtimes:
            files = make(runtime, case, Path(temporary) / runtime)
            if arguments.noise:
                report_noise(runtime, files, case.apart)
            else:
                report(runtime, files, case.validation, case.labels, arguments.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
