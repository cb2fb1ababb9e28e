"""Every way to int8 of every runtime, edgepress's and its own quantizer's, on one case: accuracy, interleaved latency, time to make.

    EDGEPRESS_CASES=… python benchmarks/quantization/peers.py [--case resnet20|resnet56|minilm] [--runtime openvino]... [--pairs N|--noise]
    EDGEPRESS_CASES=… python benchmarks/quantization/peers.py --make FOLDER [--case …] [--runtime …]
    python benchmarks/quantization/peers.py --measure FOLDER [--runtime …] [--pairs N]

All see the same 512 training samples. Drops are percentage points on the whole validation set, paired with the float model, with their
95 % interval. `x fp32` is latency over that of the float file in the same runtime, batch 1, 1 thread, in ABBA order with a 95 % bootstrap
interval; where the runtime cannot be timed here it says so. `x ORT fp32` is the same over the float file in ONNX Runtime. `ours / it` is
the same of edgepress's file of the same kind (its first, where there is none) over a peer's, in interleaved pairs of the two: rows of
`x fp32` have a window each. Seconds are wall time of the quantizer alone on a float file that is there.
`--noise` measures nothing of that but, on training samples kept apart, the noise of the outputs: mean squared difference to the
float model over the outputs' variance, and how many samples have more than one largest output. Prints Markdown.
`--make` leaves all files in a folder and measures nothing; `--measure` takes them up, on another machine too: it needs the runtimes alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peer_files import CASES, INDEX, File, Files, keep, kept, load_case, make

from edgepress.steps.measure import InTurns, Side
from edgepress.targets.nouns import Artifact, Support
from edgepress.validators.intervals import newcombe_paired
from edgepress.validators.latency import LatencyPlan, compare_opened
from edgepress.validators.runtimes import RUNTIMES
from edgepress.validators.runtimes.base import Runtime, Session

RUN = 218
#: The runtime whose float file all others are compared with.
ANCHOR = "onnxruntime"
RUNTIMES_COMPARED = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")
COLUMNS = ("drop (95 %)", "x fp32", "x ORT fp32", "ours / it", "MB", "s")
HEAD = "| runtime | quantizer | {} |\n|{}"
#: Where coremltools' reference executor is an interpreter in numpy, the first samples alone.
JUDGED = {"coreml": 1000}


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


class EachInItsOwn(Runtime):
    """Opens files of several runtimes, each in that which it was made for."""

    name = "each in its own"

    def supports(self) -> Support:
        return Support(True)

    def _open_impl(self, artifact: Artifact, folder: Path, threads: int) -> Session:
        return RUNTIMES.get(artifact.target)().open(artifact, folder, threads)


def ratio(pair: tuple[tuple[Artifact, Path], tuple[Artifact, Path]], samples: Mapping[str, np.ndarray], pairs: int) -> str:
    """Latency of the first over the second."""
    if any(RUNTIMES.get(artifact.target)().timing_unavailable() is not None for artifact, _ in pair):
        return "not timed here"
    sample = {key: value[:1] for key, value in samples.items()}
    new, old = (Side(artifact, folder, sample) for artifact, folder in pair)
    result = compare_opened(InTurns(EachInItsOwn(), new, old, threads=1), plan=LatencyPlan(min_pairs=pairs, max_pairs=pairs, seconds=240))
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


def report(
    runtime: str, files: Files, anchor: tuple[Artifact, Path], samples: Mapping[str, np.ndarray], labels: np.ndarray, pairs: int
) -> None:
    """Rows of what a runtime's files lose, take and weigh; `anchor` is the float file in ONNX Runtime."""
    before = right(runtime, *files.original, samples, labels)
    ours: dict[str, tuple[Artifact, Path]] = {}
    for file in files.candidates:
        cells = f"| {runtime} | {file.tool}, {file.kind} |"
        if isinstance(file.made, str):
            print(f"{cells} failed: {file.made} | | | | | {file.seconds:.1f} |", flush=True)
            continue
        it, direct = (file.made, file.folder), ""
        lost = drop(before, right(runtime, *it, samples, labels))
        timed, across = (ratio((it, other), samples, pairs) for other in (files.original, anchor))
        if file.tool == "edgepress":
            ours[file.kind] = it
        elif ours:
            direct = ratio((ours.get(file.kind, next(iter(ours.values()))), it), samples, pairs)
        print(f"{cells} {lost} | {timed} | {across} | {direct} | {size(*it) / 1e6:.2f} | {file.seconds:.1f} |", flush=True)


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
        runtimes = [runtime for runtime in runtimes if (arguments.measure / runtime / INDEX).is_file()]
        if not runtimes or not (arguments.measure / ANCHOR / INDEX).is_file():
            print(f"no files in {arguments.measure}, or none of {ANCHOR}: leave some there with --make", file=sys.stderr)
            return 2
        anchor = kept(arguments.measure / ANCHOR).original
        pack = dict(np.load(arguments.measure / "validation.npz"))
        labels = pack.pop("labels")
        print(HEAD.format(" | ".join(COLUMNS), "---|" * (2 + len(COLUMNS))), flush=True)
        for runtime in runtimes:
            report(runtime, kept(arguments.measure / runtime), anchor, pack, labels, arguments.pairs)
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
                anchor = files.original if runtime == ANCHOR else make(ANCHOR, case, Path(temporary) / "anchor").original
                report(runtime, files, anchor, case.validation, case.labels, arguments.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
