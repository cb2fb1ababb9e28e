"""Processor time of MiniLM's calibration over that of plain forward passes over the same samples, by observer.

    EDGEPRESS_CASES=… python benchmarks/quantization/calibration.py [--rounds 3]

512 sentences of 64 tokens in batches of 32, one thread, all in turns; the median of the rounds' ratios with the smallest and the largest.
Freed memory stays with the process, as it does with the steps of a run. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from outliers import CALIBRATION, exported, pieces

from edgepress.compress.quantize import calibrate
from edgepress.forkserver import _KEPT_MEMORY
from edgepress.targets.rules import RULES, rules_for

#: Whose integers a run takes statistics for.
RUNTIMES = [rules_for(name) for name in RULES.builtins]


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds that it takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> int:
    """Print a row per observer."""
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    case = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "sst2"
    if not case.is_dir():
        print(f"no folder {case}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    if any(name not in os.environ for name in _KEPT_MEMORY):  # read once, as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEPT_MEMORY})
    sys.path.insert(0, str(case))  # its model.py and data.py
    torch.set_num_threads(1)
    model = importlib.import_module("model").minilm()
    model.load_state_dict(load_file(case / "minilm.safetensors"))
    data = importlib.import_module("data").train()
    seen = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:CALIBRATION]
    samples = (data.ids[seen], data.mask[seen])
    program = exported(model, tuple(item[:2] for item in samples))
    module = program.module()

    def forward() -> None:
        with torch.no_grad():
            for piece in pieces(samples, 32):
                module(*piece)

    ratios: dict[str, list[float]] = {"histogram": [], "auto": []}
    for _ in range(arguments.rounds):
        for observer, found in ratios.items():
            plain = seconds(forward)
            calibrating = partial(calibrate, program, observer=observer, runtimes=RUNTIMES)
            found.append(seconds(lambda take=calibrating: take(pieces(samples, 32))) / plain)  # type: ignore[misc]
    print("| observer | over forward passes | smallest | largest |\n|---|---|---|---|")
    for observer, found in ratios.items():
        print(f"| {observer} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
