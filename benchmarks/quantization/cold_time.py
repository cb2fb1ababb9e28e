"""Cold time of the five int8 artifacts of ResNet-20 against the runtimes' own quantizers, each from the start of its process.

    EDGEPRESS_CASES=… python benchmarks/quantization/cold_time.py [--ours] [--repeat N]

Ours: the steps of benchmarks/cases/cifar10/resnet20.yaml that make the artifacts, run as `edgepress run` runs them and from a store that
holds the samples alone: tracing, calibration, five exports. Each step's own seconds stand below it; targets run side by side.
A peer: the checkpoint is loaded and converted by the framework's converter (one process), and its quantizer reads that float file and the
same 512 samples (another). TensorRT's own (ModelOpt) is not among them. Validation is on no side. CPU seconds are those
of all processes of a side. Of several repetitions each process's shortest is shown. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the peers' processes import nothing of edgepress
    from edgepress.step import Result, Step

HERE = Path(__file__).resolve()
RECIPE = HERE.parents[1] / "cases" / "cifar10" / "resnet20.yaml"
BATCH = 32
#: Runtime -> its converter and its quantizer.
PEERS = {
    "onnxruntime": ("torch.onnx.export", "onnxruntime.quantization, static"),
    "openvino": ("openvino.convert_model", "nncf.quantize"),
    "litert": ("litert_torch.convert", "ai-edge-quantizer static"),
    "coreml": ("coremltools.convert", "coremltools.optimize, weights"),
}


@dataclass(frozen=True)
class Spent:
    """Wall and CPU seconds of one process and all that it started."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} | {self.cpu_s:.1f}"


def spent(part: str, scratch: Path) -> Spent:
    """Run one part of this file in a fresh process."""
    command = [sys.executable, str(HERE), "--part", part, "--scratch", str(scratch)]
    started = time.monotonic()
    with (scratch / "log.txt").open("ab") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    wall_s = time.monotonic() - started
    if status:
        raise SystemExit(f"{part} failed:\n{(scratch / 'log.txt').read_text()[-4000:]}")
    took = Spent(wall_s, usage.ru_utime + usage.ru_stime)
    print(f"{part}: {took.wall_s:.1f} s, CPU {took.cpu_s:.1f} s", file=sys.stderr, flush=True)
    return took


class Making:
    """Runs the steps that make artifacts, and leaves the others, all of them validation, pending."""

    def __init__(self, scratch: Path, functions: Collection[str]) -> None:
        from edgepress.step import Runner
        from edgepress.store import Store

        self.seconds: dict[str, float] = {}
        self._functions, self._runner = functions, Runner(Store(scratch / "store"), self, scratch / "log.txt")

    def do(self, step: Step) -> Result:
        """The result of a step, or a pending one."""
        from edgepress.step import Result

        if step.function.partition(":")[2] in self._functions:
            return self._runner.do(step)
        return Result({}, Path(), "", False, 0.0, pending=True)

    def started(self, step: Step) -> None:
        """Nothing to say."""

    def moved(self, step: Step, text: str, done: int, total: int) -> None:
        """Nothing to say."""

    def ended(self, step: Step, result: Result | None) -> None:
        """Keep the seconds of a step that ran."""
        if result is not None and not result.cached:
            self.seconds[step.name] = result.seconds

    def interrupted(self, step: Step) -> None:
        """Nothing to say."""


def collect(scratch: Path) -> None:
    """The samples of the recipe, for both sides."""
    from edgepress.config import load
    from edgepress.pipeline import Pipeline

    config = load(RECIPE)
    made = Pipeline(config, (), Making(scratch, ("collect",))).prepare()
    (scratch / "samples").symlink_to(made.data.folder / "calibration")


def ours(scratch: Path) -> None:
    """Trace, calibrate and export all targets of the recipe, side by side as the tool does."""
    from edgepress.config import load, recipe
    from edgepress.pipeline import Pipeline

    config = load(RECIPE)
    plans, making = recipe(config), Making(scratch, ("collect", "trace", "calibrate", "refine", "export"))
    pipeline = Pipeline(config, plans, making)
    prepared = pipeline.prepare()
    with ThreadPoolExecutor(len(plans)) as pool:
        runs = list(pool.map(lambda plan: pipeline.compress(plan, prepared), plans))
    failed = [str(run.error) for run in runs if run.error is not None]
    if failed:
        raise SystemExit("\n".join(failed))
    (scratch / "steps.json").write_text(json.dumps(making.seconds))


def convert(name: str, scratch: Path) -> None:
    """Load the checkpoint and write the float file that a peer reads, with the converter's plain call."""
    import torch
    from safetensors.torch import load_file

    case = Path(os.environ["EDGEPRESS_CASES"]) / "cifar10"
    sys.path.insert(0, str(case))  # its model.py
    model = importlib.import_module("model").resnet20().eval()
    model.load_state_dict(load_file(case / "resnet20.safetensors"))
    example = (torch.from_numpy(np.load(scratch / "samples" / "input_0.npy", mmap_mode="r")[:2].copy()),)
    folder, batch = scratch / name, ({0: torch.export.Dim.DYNAMIC},)
    folder.mkdir(exist_ok=True)
    if name == "onnxruntime":
        options = {"dynamo": True, "input_names": ["input"], "dynamic_shapes": batch, "external_data": False}
        torch.onnx.export(model, example, folder / "float.onnx", **options)
    elif name == "openvino":
        import openvino

        program = torch.export.export(model, example, dynamic_shapes=batch)
        openvino.save_model(openvino.convert_model(program), folder / "float.xml", compress_to_fp16=False)
    elif name == "litert":
        import litert_torch

        litert_torch.convert(model, (example[0][:1],)).export(str(folder / "float.tflite"))
    else:
        import coremltools

        program = torch.export.export(model, (example[0][:1],)).run_decompositions({})
        coremltools.convert(program, skip_model_load=True).save(str(folder / "float.mlpackage"))


def peer(name: str, scratch: Path) -> None:
    """Quantize the float file with the runtime's own tool, on the same samples."""
    folder, samples = scratch / name, np.load(scratch / "samples" / "input_0.npy")
    if name == "onnxruntime":
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"))
        pieces = iter([{"input": samples[i : i + BATCH]} for i in range(0, len(samples), BATCH)])
        reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(pieces, None)})()
        kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
        quantization.quantize_static(str(folder / "prepared.onnx"), str(folder / "int8.onnx"), reader, per_channel=True, **kinds)
    elif name == "openvino":
        import nncf
        import openvino

        model = openvino.Core().read_model(folder / "float.xml")
        quantized = nncf.quantize(model, nncf.Dataset([samples[i : i + 1] for i in range(len(samples))]), subset_size=len(samples))
        openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)
    elif name == "litert":
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        (named,) = Interpreter(str(folder / "float.tflite")).get_signature_list()["serving_default"]["inputs"]
        tool = quantizer.Quantizer(str(folder / "float.tflite"), recipe.static_wi8_ai8())
        seen = tool.calibrate({"serving_default": [{named: samples[i : i + 1]} for i in range(len(samples))]})
        (folder / "int8.tflite").write_bytes(bytes(tool.quantize(seen).quantized_model))
    else:
        import coremltools
        from coremltools.optimize import coreml

        model = coremltools.models.MLModel(str(folder / "float.mlpackage"), skip_model_load=True)
        weights = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
        coreml.linear_quantize_weights(model, config=coreml.OptimizationConfig(global_config=weights)).save(str(folder / "int8.mlpackage"))


PARTS = {"collect": collect, "ours": ours}
PARTS |= {f"convert:{name}": partial(convert, name) for name in PEERS} | {f"peer:{name}": partial(peer, name) for name in PEERS}


def repetition(base: Path, scratch: Path, parts: Collection[str]) -> dict[str, Spent]:
    """Every part once, ours from a store with the samples alone."""
    scratch.mkdir()
    shutil.copytree(base / "store", scratch / "store")
    (scratch / "samples").symlink_to((base / "samples").resolve())
    return {part: spent(part, scratch) for part in parts}


def show(best: Mapping[str, Spent], steps: Mapping[str, float]) -> None:
    """Print what each side took, and how ours spent it."""
    print("| side | wall s | CPU s |\n|---|---|---|")
    print(f"| edgepress, five artifacts | {best['ours']} |")
    nothing = Spent(0.0, 0.0)
    conversions, quantizers = (sum((best[f"{kind}:{name}"] for name in PEERS), nothing) for kind in ("convert", "peer"))
    for name, (converter, quantizer) in PEERS.items():
        print(f"| {converter} | {best[f'convert:{name}']} |\n| {quantizer} | {best[f'peer:{name}']} |")
    print(f"| the four quantizers | {quantizers} |\n| the same with conversion | {conversions + quantizers} |\n")
    print("Steps of edgepress, wall s: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items()) + ".")


def main() -> int:
    """Print what each side took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions")
    parser.add_argument("--ours", action="store_true", help="edgepress alone: the wall and CPU seconds of each repetition")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("EDGEPRESS_CASES", str(HERE.parents[3] / "shared" / "cases"))
    if not Path(os.environ["EDGEPRESS_CASES"], "cifar10").is_dir():
        print("no folder cifar10 in EDGEPRESS_CASES: set it to the folder of the real cases", file=sys.stderr)
        return 2
    if arguments.part:
        PARTS[arguments.part](arguments.scratch)
        return 0
    with TemporaryDirectory() as temporary:
        base = Path(temporary)
        spent("collect", base)
        parts = ["ours"] if arguments.ours else [part for part in PARTS if part != "collect"]
        turns = [repetition(base, base / str(turn), parts) for turn in range(arguments.repeat)]
        if arguments.ours:
            print("| wall s | CPU s |\n|---|---|", *(f"| {turn['ours']} |" for turn in turns), sep="\n")
            return 0
        best = {part: min((turn[part] for turn in turns), key=lambda one: one.wall_s) for part in turns[0]}
        fastest = min(range(len(turns)), key=lambda turn: turns[turn]["ours"].wall_s)
        show(best, json.loads((base / str(fastest) / "steps.json").read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
