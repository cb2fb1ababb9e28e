"""Our static int8 beside that of a runtime's own quantizer on nets of common structures: where integers are placed, and what it costs.

    python benchmarks/quantization/structures.py [--net U-Net]... [--runtime openvino]... [--pairs N]

Random weights, 64 samples for calibration, the same for all. `x fp32` is latency over that of the float file in the same runtime, batch 1,
1 thread, `ours / it` our file over the peer's, both in interleaved pairs with a 95 % interval; `dB` is the signal over the noise of the
outputs, mean square, on 64 other samples. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from peer_files import Case, make
from peers import outputs, ratio
from structure_nets import NETS, net

from edgepress.compress.quantize import calibrate
from edgepress.targets.nouns import Signature, TensorSpec

RUNTIMES = ("onnxruntime", "openvino", "litert")
SAMPLES = 64
KINDS = ("static",)


def case(name: str, scratch: Path) -> Case:
    model, samples = net(name, 2 * SAMPLES)
    given, other = samples[:SAMPLES], samples[SAMPLES:]
    program = torch.export.export(model, (given[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, scratch / "model.pt2")
    calibrate(program, [(given,)]).save(scratch / "statistics")
    answer = model(given[:2])
    signature = Signature(
        (TensorSpec("input", str(given.numpy().dtype), (None, *given.shape[1:])),),
        (TensorSpec("output", "float32", (None, *answer.shape[1:])),),
    )
    arrays, apart = {"input": given.numpy()}, {"input": other.numpy()}
    return Case(scratch / "model.pt2", scratch / "statistics", signature, arrays, apart, apart, np.zeros(0), 0.0)


def decibels(exact: np.ndarray, found: np.ndarray) -> str:
    return f"{10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()):.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--runtime", action="append", choices=RUNTIMES, help="default: all")
    parser.add_argument("--pairs", type=int, default=100, help="interleaved pairs per ratio")
    arguments = parser.parse_args()
    print("| net | runtime | quantizer | x fp32 | ours / it | dB |\n|---|---|---|---|---|---|", flush=True)
    for name in arguments.net or NETS:
        for runtime in arguments.runtime or RUNTIMES:
            with TemporaryDirectory() as temporary:
                made = case(name, Path(temporary))
                files = make(runtime, made, Path(temporary) / runtime, KINDS)
                exact, ours = outputs(runtime, *files.original, made.apart), None
                for file in files.candidates:
                    cells = f"| {name} | {runtime} | {file.tool} |"
                    if isinstance(file.made, str):
                        print(f"{cells} refused: {file.made.partition('.')[0][:120]} | | |", flush=True)
                        continue
                    it = (file.made, file.folder)
                    timed = ratio((it, files.original), made.apart, arguments.pairs)
                    direct = ratio((ours, it), made.apart, arguments.pairs) if ours else ""
                    ours = ours or it
                    print(f"{cells} {timed} | {direct} | {decibels(exact, outputs(runtime, *it, made.apart))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
