"""What the accuracy algorithms of post-training quantization buy back on CIFAR-10, at 4-bit and at 8-bit weights.

    EDGEPRESS_CASES=… python benchmarks/quantization/algorithms.py [--model resnet56] [--weights 4 6 8] [--activations 4] [--per-tensor]
    … --folder HARD/mobilenetv2 --model mobilenetv2     # a net of benchmarks/cases/hard/train.py

Placement, scales and rounding are those of the ONNX Runtime rules; weights of 4 and 6 bits differ in their bounds alone (-7 to 7, -31 to
31), 4-bit activations too (0 to 15; observers search ranges for as many levels). The rendered integer graph runs in PyTorch on the
whole validation set; calibration and algorithms see 512 training images. Seconds are processor time of calibration and algorithms on
one thread. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.quantize import Statistics, calibrate, observers, render
from edgepress.compress.quantize.equalize import equalize
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import REFINERS, QuantRules, rules_for
from edgepress.validators.intervals import newcombe_paired

STATIC, CALIBRATION, BATCH = Scheme("int8", "static"), 512, 32
ROWS = ([], ["bias-correction"], ["gptq"], ["adaround"], ["brecq"], ["lsq"], ["equalize", "bias-correction"])


def classes(module: nn.Module, images: Tensor) -> Tensor:
    """The class a model gives each image."""
    with torch.no_grad():
        return torch.cat([module(piece).argmax(1) for piece in images.split(250)])


def refined(program: ExportedProgram, names: list[str], rules: QuantRules, seen: list[tuple[Tensor]]) -> tuple[ExportedProgram, Statistics]:
    """The program and its statistics after the algorithms of a row, as a recipe line would have them."""
    if "equalize" in names:
        program = equalize(program, seen, [rules]).program
    statistics = calibrate(program, seen)
    refiners = refiners_of([name for name in REFINERS if name in names], seed=0)
    return program, refine(program, statistics, rules, STATIC, seen, refiners) if refiners else statistics


def drop(before: Tensor, after: Tensor) -> str:
    """Percentage points lost, with the interval of paired samples."""
    counts = (int((first & second).sum()) for first, second in ((before, after), (before, ~after), (~before, after), (~before, ~after)))
    low, high = newcombe_paired(*counts, confidence=0.95)
    lost = 100 * float((before.float() - after.float()).mean())
    return f"{lost:+.2f} pp ({100 * low:+.2f} to {100 * high:+.2f})"


def main() -> int:
    """Print a table per width."""
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="model.py, data.py and MODEL.safetensors; the cifar10 case by default")
    parser.add_argument("--model", default="resnet20", help="factory in model.py, and name of its checkpoint")
    parser.add_argument("--per-tensor", action="store_true", help="one scale per weight tensor instead of one per channel")
    parser.add_argument("--rows", nargs="+", metavar="NAME[+NAME]", help="algorithms instead of the usual rows")
    parser.add_argument("--activations", type=int, choices=(4, 8), default=8, help="bits of the activations; 8 as shipped")
    parser.add_argument("--weights", type=int, nargs="+", choices=(4, 6, 8), default=[4, 8], help="bits of the weights; 8 as shipped")
    arguments = parser.parse_args()
    case = arguments.folder or Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "cifar10"
    if not case.is_dir():
        print(f"no folder {case}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    sys.path.insert(0, str(case))  # its model.py and data.py
    torch.set_num_threads(1)
    model: nn.Module = getattr(importlib.import_module("model"), arguments.model)()
    model.load_state_dict(load_file(case / f"{arguments.model}.safetensors"))
    data = importlib.import_module("data")
    images, labels = data.validation().tensors
    trained_on = data.train().tensors[0]
    drawn = trained_on[torch.randperm(len(trained_on), generator=torch.Generator().manual_seed(0))[:CALIBRATION]]
    levels = 2**arguments.activations
    observers.STEPS, observers.HALF_STEPS = levels - 1, levels // 2 - 1
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model.eval(), (drawn[:2],), dynamic_shapes=batch)
    right = classes(program.module(), images) == labels
    print(f"Float: {100 * float(right.float().mean()):.2f} % on {len(labels)} images.\n", flush=True)
    print("| weights | algorithms | drop (95 %) | seconds |\n|---|---|---|---|")
    rows = [name.split("+") for name in arguments.rows] if arguments.rows else ROWS
    for bits in arguments.weights:
        shipped = replace(rules_for("onnxruntime"), activation_max=2**arguments.activations - 1)
        shipped = replace(shipped, per_channel=frozenset()) if arguments.per_tensor else shipped
        highest = 2 ** (bits - 1) - 1
        rules = shipped if bits == 8 else replace(shipped, weight_min=-highest, weight_max=highest)
        for names in rows:
            started = time.process_time()
            after, statistics = refined(program, names, rules, [(piece,) for piece in drawn.split(BATCH)])
            seconds = time.process_time() - started
            correct = classes(render(after, statistics, rules, STATIC).module, images) == labels
            print(f"| {bits} bits | {', '.join(names) or 'none'} | {drop(right, correct)} | {seconds:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
