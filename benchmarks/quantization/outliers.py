"""What choosing ranges by the outputs, scaling and splitting outlier channels take off the noise at MiniLM's logits, by the integers of
each runtime.

    EDGEPRESS_CASES=… python benchmarks/quantization/outliers.py [--sentences 512] [--runtimes onnxruntime tensorrt]

Noise is the mean squared difference of the logits to the float model's over their variance. The rendering runs in PyTorch on training
sentences of 12 to 32 tokens, calibration sees 512 others of any length. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from edgepress.compress.quantize import Statistics, calibrate, split_outliers
from edgepress.compress.quantize.arithmetic import Arithmetic
from edgepress.compress.quantize.graph import constant
from edgepress.compress.quantize.render import placed
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for

STATIC, CALIBRATION, SHORTEST, TOKENS = Scheme("int8", "static"), 512, 12, 32


class Simulated(Interpreter):  # type: ignore[misc]
    """A rendering in floats on the grids of its integers."""

    def __init__(self, program: ExportedProgram, statistics: Statistics, rules: QuantRules) -> None:
        module, placement, parameters = placed(program, statistics, rules, STATIC)
        super().__init__(module)
        self._arithmetic = Arithmetic(placement, parameters, rules)
        layers = [node for node in placement.kinds if self._arithmetic.is_layer(node)]
        self._weights = {node: self._arithmetic.grid(node, constant(module, node.args[1])).nearest for node in layers}  # type: ignore[arg-type]

    def run_node(self, n: Node) -> Any:
        """One node, rounded where the runtime rounds."""
        return self._arithmetic.rounded(n, self.env, self._weights) if n.op == "call_function" else super().run_node(n)


def logits(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Answers of a module or an interpreter, (sentences, 2)."""
    with torch.no_grad():
        return torch.cat([torch.utils._pytree.tree_leaves(model(*piece))[0] for piece in pieces(inputs, 64)])


def pieces(inputs: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches."""
    return zip(*(item.split(size) for item in inputs), strict=True)


def exported(model: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """The model with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(model.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def main() -> int:
    """Print a row per runtime."""
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "tensorrt", "coreml", "litert"])
    arguments = parser.parse_args()
    case = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "sst2"
    if not case.is_dir():
        print(f"no folder {case}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    sys.path.insert(0, str(case))  # its model.py and data.py
    torch.set_num_threads(1)
    model = importlib.import_module("model").minilm()
    model.load_state_dict(load_file(case / "minilm.safetensors"))
    data = importlib.import_module("data").train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    seen, rest = order[:CALIBRATION], order[2 * CALIBRATION :]
    lengths = data.mask[rest].sum(dim=1)
    judged = rest[(lengths >= SHORTEST) & (lengths <= TOKENS)][: arguments.sentences]
    inputs = (data.ids[judged][:, :TOKENS], data.mask[judged][:, :TOKENS])
    longer, calibration = exported(model, (data.ids[:2], data.mask[:2])), (data.ids[seen], data.mask[seen])
    held = {observer: calibrate(longer, pieces(calibration, 32), observer) for observer in ("histogram", "auto")}
    program = exported(model, tuple(item[:2] for item in inputs))  # its nodes have the names of the longer one's
    exact = logits(program.module(), inputs)
    print("| runtime | observer | plain | scaled | scaled and split |\n|---|---|---|---|---|")
    pays = split_outliers.WORTH
    for runtime in arguments.runtimes:
        for observer, statistics in held.items():
            found = []
            for smooth, worth in ((False, 0.0), (True, 0.0), (True, pays)):
                split_outliers.WORTH = worth  # copies must take off more than everything, or the share that is shipped
                simulated = Simulated(program, statistics, replace(rules_for(runtime), smooth=smooth))
                noise = (logits(simulated.run, inputs) - exact).square().mean() / exact.var(dim=0).mean()
                found.append(f"{float(noise):.5f}")
            print(f"| {runtime} | {observer} | {' | '.join(found)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
