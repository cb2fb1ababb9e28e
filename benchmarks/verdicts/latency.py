"""Latency gates on a noisy machine: false alarms of the same artifact twice, and how often a slower one is caught.

    python benchmarks/verdicts/latency.py [--same N] [--slower N] [--limit 1.02] [--quiet]
    python benchmarks/verdicts/latency.py --openings 10     # the same artifact twice, by which of the two was opened first

An ONNX chain of 60 equal linear layers runs in ONNX Runtime against itself and against chains of 63 and 66 layers: 5 and 10 % more of
the same work. Every run opens both files anew, takes the windows that `edgepress run` takes and is judged by the gate. Meanwhile
another process loads one core in bursts (0.05 to 0.8 s of work, pauses as long; `--quiet` leaves it out). The kinds of run are interleaved.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepress.machine import cores, cpu_name
from edgepress.steps.measure import FIRST, MORE, InTurns, Side
from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from edgepress.validators.gates import Gate, judge
from edgepress.validators.latency import LatencyPlan, compare_latency, compare_opened
from edgepress.validators.runtimes import RUNTIMES

WIDTH, LAYERS = 128, 60
BURSTS = """
import os, random, time
random.seed(0)
parent = os.getppid()
while os.getppid() == parent:
    for work in (True, False):
        end = time.perf_counter() + random.uniform(0.05, 0.8)
        while time.perf_counter() < end:
            if not work:
                time.sleep(0.005)
"""


def chain(layers: int, path: Path) -> Artifact:
    """`layers` products of a (1, WIDTH) row with a (WIDTH, WIDTH) matrix of its own, each followed by a Relu."""
    draw, nodes, weights = np.random.default_rng(0), [], []
    for i in range(layers):
        weights.append(numpy_helper.from_array((draw.standard_normal((WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", ["x" if i == 0 else f"r{i}", f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], ["y" if i == layers - 1 else f"r{i + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)
    signature = Signature((TensorSpec("x", "float32", (None, WIDTH)),), (TensorSpec("y", "float32", (None, WIDTH)),))
    return Artifact(path.name, "onnxruntime", Scheme("fp32", "float"), signature)


def run(candidate: Artifact, reference: Artifact, folder: Path, limit: float) -> str:
    """The verdict of one run: a window, and a longer one where that leaves the limit undecided, as `edgepress run` does."""
    runtime, sample = RUNTIMES.get("onnxruntime")(), {"x": np.ones((1, WIDTH), np.float32)}
    gate = Gate("latency_ratio", limit, "ratio")
    opened = InTurns(runtime, Side(candidate, folder, sample), Side(reference, folder, sample), threads=1)
    found = compare_opened(opened, plan=FIRST)
    if found.interval[0] <= limit <= found.interval[1]:
        found = compare_opened(opened, limit=limit, plan=MORE)
    return judge([gate], [found.evidence("the other")])[0].verdict


def openings(times: int) -> None:
    """Print what 400 pairs say of an artifact against itself, where the candidate is opened first and where it is opened second."""
    runtime, sample = RUNTIMES.get("onnxruntime")(), {"x": np.ones((1, WIDTH), np.float32)}
    plan = LatencyPlan(min_pairs=400, max_pairs=400)
    found: dict[str, list[float]] = {"first": [], "second": []}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [chain(LAYERS, folder / f"{name}.onnx") for name in ("candidate", "reference")]
        for _ in range(times):
            for order in found:
                opened = [runtime.open(file, folder) for file in (files if order == "first" else files[::-1])]
                new, old = opened if order == "first" else opened[::-1]
                found[order].append(compare_latency(new.bind(sample), old.bind(sample), plan=plan).ratio)
                for session in opened:
                    session.close()
    print("| candidate opened | ratios of the same artifact to itself, sorted |\n|---|---|")
    for order, ratios in found.items():
        print(f"| {order} | {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=400, help="runs of an artifact against itself")
    parser.add_argument("--slower", type=int, default=200, help="runs against each slower artifact")
    parser.add_argument("--limit", type=float, default=1.02, help="of the gate `latency_ratio`")
    parser.add_argument("--quiet", action="store_true", help="without the process that loads a core in bursts")
    parser.add_argument("--openings", type=int, help="only compare orders of opening, that many times")
    arguments = parser.parse_args()
    if arguments.openings:
        openings(arguments.openings)
        return 0
    counts = {LAYERS: arguments.same, LAYERS + LAYERS // 20: arguments.slower, LAYERS + LAYERS // 10: arguments.slower}
    order = np.random.default_rng(0).permutation([layers for layers, times in counts.items() for _ in range(times)])
    beside = None if arguments.quiet else subprocess.Popen([sys.executable, "-c", BURSTS])
    found: Counter[tuple[int, str]] = Counter()
    try:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = {layers: chain(layers, folder / f"{layers}.onnx") for layers in counts}
            same = chain(LAYERS, folder / "same.onnx")
            for done, layers in enumerate(map(int, order), 1):
                found[layers, run(files[layers], same, folder, arguments.limit)] += 1
                if done % 20 == 0:
                    print(f"{done} of {len(order)}: {dict(found)}", file=sys.stderr, flush=True)
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()
    print(f"{cpu_name()}, {cores()} cores, {'quiet' if arguments.quiet else 'one core loaded in bursts'}, gate at most {arguments.limit}\n")
    print("| artifact | runs | pass | fail | undecided |\n|---|---|---|---|---|")
    for layers, times in counts.items():
        what = "the same" if layers == LAYERS else f"{100 * (layers / LAYERS - 1):.0f} % slower"
        print(f"| {what} | {times} | " + " | ".join(f"{found[layers, word] / times:.1%}" for word in ("pass", "fail", "undecided")) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
