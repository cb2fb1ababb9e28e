"""Do int8 layers compute the same on CPUs with VNNI and without, where two neighbouring products are added in 16 bits?

    python benchmarks/quantization/exact_sums.py --make FOLDER [--weight-bits 8]      # on a CPU with VNNI
    ONEDNN_MAX_CPU_ISA=AVX512_CORE python benchmarks/quantization/exact_sums.py --check FOLDER
    qemu-x86_64 -cpu Haswell-noTSX .venv/bin/python benchmarks/quantization/exact_sums.py --check FOLDER

`--make` writes files of one layer each for ONNX Runtime and OpenVINO, whose weights are uniform between -1 and 1 and whose activations
mostly lie at the end of their range, and what they answer here; `--check` executes them again and lists those that answer otherwise, by
more than a hundredth of the largest answer. It needs the runtimes and numpy alone. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

RUNTIMES = {"onnxruntime": "*.onnx", "openvino": "**/*.xml"}
SAMPLES = 8
#: Saturation moves answers by more than this share of the largest; rounding an output in another order does not.
TOLERANCE = 1e-2


def layers() -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Name, layer, and shape of a sample."""
    from torch import nn

    for inputs, outputs in ((3, 5), (17, 4), (33, 16), (64, 32), (130, 8), (384, 96)):
        yield f"linear {inputs} {outputs}", nn.Linear(inputs, outputs), (inputs,)
        yield f"linear of tokens {inputs} {outputs}", nn.Linear(inputs, outputs), (7, inputs)
    for inputs in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 20, 31, 48, 64):
        for outputs, kernel, stride, dilation in (
            (16, 3, 1, 1),
            (8, 1, 1, 1),
            (20, 5, 2, 1),
            (16, (1, 7), 1, 1),
            (8, 3, 1, 2),
            (64, 2, 2, 1),
        ):
            name = f"convolution {inputs} {outputs}, {kernel}, stride {stride}, dilation {dilation}"
            yield name, nn.Conv2d(inputs, outputs, kernel, stride, 1, dilation), (inputs, 12, 12)  # type: ignore[arg-type]
        yield f"convolution of one dimension {inputs}", nn.Conv1d(inputs, 24, 5, padding=2), (inputs, 40)
        if inputs < 17:
            yield f"convolution of three dimensions {inputs}", nn.Conv3d(inputs, 16, 3, padding=1), (inputs, 4, 8, 8)
            yield f"transposed convolution {inputs}", nn.ConvTranspose2d(inputs, 8, 4, 2, 1), (inputs, 8, 8)
    for inputs, outputs, groups in (
        (32, 32, 32),
        (5, 5, 5),
        (18, 36, 18),
        (32, 32, 8),
        (32, 32, 4),
        (24, 24, 8),
        (15, 15, 5),
        (30, 30, 2),
        (64, 64, 4),
    ):
        for kernel in (3, 5):
            name = f"convolution {inputs} {outputs} in {groups} groups, {kernel}"
            yield name, nn.Conv2d(inputs, outputs, kernel, padding=1, groups=groups), (inputs, 10, 10)


def make(folder: Path, weight_bits: int) -> None:
    """Write all files with their samples and answers."""
    import torch

    from edgepress.compress.quantize import calibrate
    from edgepress.exporters import EXPORTERS
    from edgepress.exporters.base import ExportRequest
    from edgepress.targets.errors import QuantizationError
    from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec

    torch.manual_seed(0)
    scheme = Scheme("int8", "static", weight_bits=weight_bits)
    for number, (name, layer, shape) in enumerate(layers()):
        with torch.no_grad(), TemporaryDirectory() as scratch:
            layer.weight.uniform_(-1, 1)
            samples = (torch.rand(SAMPLES, *shape) < 0.9).float()
            program, statistics = Path(scratch) / "model.pt2", Path(scratch) / "statistics"
            exported = torch.export.export(layer.eval(), (samples,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            torch.export.save(exported, program)
            calibrate(exported, [(samples,)]).save(statistics)
            specs = [(TensorSpec(key, "float32", (None, *value.shape[1:])),) for key, value in (("x", samples), ("y", layer(samples)))]
            for runtime in RUNTIMES:
                own = folder / f"{number:03d}-{runtime}"
                own.mkdir(parents=True)
                target = Target(runtime, runtime, "x86-64 CPU", "int8")
                try:
                    EXPORTERS.get(runtime)().export(
                        ExportRequest(program, Signature(*specs), statistics, target, scheme, (samples[:4].numpy(),)), own
                    )
                except QuantizationError as error:  # a kind without an integer kernel
                    print(f"{runtime}, {name}: {error}", file=sys.stderr)
                    own.rmdir()
                    continue
                np.savez(own / "answer.npz", x=samples.numpy(), y=run(runtime, own, samples.numpy()), name=name)


def run(runtime: str, folder: Path, samples: np.ndarray) -> np.ndarray:
    """What a file answers."""
    path = next(folder.glob(RUNTIMES[runtime]))
    if runtime == "onnxruntime":
        import onnxruntime

        return np.asarray(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": samples})[0])
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({"x": samples})[0])


def check(folder: Path) -> None:
    """Execute all files again, and print which answer otherwise."""
    for runtime in RUNTIMES:
        wrong, folders = [], sorted(folder.glob(f"*-{runtime}"))
        for own in folders:
            kept = np.load(own / "answer.npz")
            off = np.abs(run(runtime, own, kept["x"]) - kept["y"]).max() / np.abs(kept["y"]).max()
            wrong += [f"| {runtime} | {kept['name']} | {off:.3f} |"] if off > TOLERANCE else []
        print(f"{runtime}: {len(folders) - len(wrong)} of {len(folders)} layers answer the same.\n", flush=True)
        if wrong:
            print("| runtime | layer | off, of the largest answer |\n|---|---|---|")
            print(*wrong, "", sep="\n", flush=True)


def main() -> int:
    """Make files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", type=Path, metavar="FOLDER")
    what.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--weight-bits", type=int, choices=(0, 7, 8), default=0, help="as the targets' option; 0, the default: as shipped")
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.weight_bits)
    else:
        check(arguments.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
