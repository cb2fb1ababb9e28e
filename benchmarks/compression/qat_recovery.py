"""What quantization-aware training buys back where post-training quantization is made to hurt: 4-bit weights on CIFAR-10 ResNet-20.

    EDGEPRESS_CASES=… python benchmarks/compression/qat_recovery.py [--epochs 1] [--per-tensor]

Placement, scales and rounding are those of the ONNX Runtime rules but for the bounds of weights (-7 to 7). Both models are the rendered
integer graph run in PyTorch on the whole validation set; training sees training images alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgepress.compress.distill import DistillObjective, DistillSettings, ModuleTeacher
from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.qat import simulate
from edgepress.compress.train import TrainConfig, task_loss, train
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

STATIC, CALIBRATION, BATCH = Scheme("int8", "static"), 512, 32


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        right = sum(int((module(images[i : i + 250]).argmax(1) == labels[i : i + 250]).sum()) for i in range(0, len(labels), 250))
    return right / len(labels)


def main() -> int:
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--per-tensor", action="store_true", help="one scale per weight tensor instead of one per channel")
    arguments = parser.parse_args()
    cases = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "cifar10"
    if not cases.is_dir():
        print(f"no folder {cases}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    sys.path.insert(0, str(cases))  # its model.py and data.py
    model: nn.Module = importlib.import_module("model").resnet20()
    model.load_state_dict(load_file(cases / "resnet20.safetensors"))
    data = importlib.import_module("data")
    train_images, train_labels = data.train().tensors
    images, labels = data.validation().tensors
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(0))
    drawn = train_images[order[:CALIBRATION]]
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model.eval(), (drawn[:2],), dynamic_shapes=batch)
    rules = replace(rules_for("onnxruntime"), weight_min=-7, weight_max=7)
    if arguments.per_tensor:
        rules = replace(rules, per_channel=frozenset())
    pieces = [(drawn[i : i + BATCH],) for i in range(0, CALIBRATION, BATCH)]
    statistics = calibrate(program, pieces)
    whole = accuracy(program.module(), images, labels)
    plain = accuracy(render(program, statistics, rules, STATIC).module, images, labels)
    started = time.perf_counter()
    simulation = simulate(program, statistics, rules, STATIC)
    teacher = ModuleTeacher(program)
    objective = DistillObjective(simulation.module, teacher, (drawn[:2],), DistillSettings(), task_loss().loss)
    settings = TrainConfig(epochs=arguments.epochs, batch=128, optimizer="adamw", lr=2e-4, clip=1.0, augment=("flip", "crop4"))
    with TemporaryDirectory() as folder:
        train(simulation.module, TensorDataset(train_images, train_labels), objective, settings, Path(folder))
    objective.close()
    trained = simulation.program(program)
    after = accuracy(render(trained, calibrate(trained, pieces), rules, STATIC).module, images, labels)
    row = {
        "float": whole,
        "ptq_drop_pp": round(100 * (whole - plain), 2),
        "qat_drop_pp": round(100 * (whole - after), 2),
        "recovered": round((after - plain) / (whole - plain), 3),
        "seconds": round(time.perf_counter() - started),
        "epochs": arguments.epochs,
        "weights": "4 bits per " + ("tensor" if arguments.per_tensor else "channel"),
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
