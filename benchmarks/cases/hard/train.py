"""Train the nets of model.py on the CIFAR-10 case and write a project for each, ready for `edgepress run`.

    EDGEPRESS_CASES=… python benchmarks/cases/hard/train.py FOLDER [--minutes 14] [mobilenetv2 mobilenetv3 vit]

Minutes are processor time per net, on one thread: the learning rate falls by a cosine over them. FOLDER/NAME gets the model code, the
data, NAME.safetensors and edgepress.yaml.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

HERE, NAMES = Path(__file__).parent, ("mobilenetv2", "mobilenetv3", "vit")
BATCH, PEAK, WARM_UP = 128, 2e-3, 0.05


def augmented(images: Tensor) -> Tensor:
    """Half of the images mirrored, each moved by up to 4 pixels; (n, 3, 32, 32) in and out."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))
    padded = F.pad(mirrored, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (len(images), 1, 1)), torch.randint(0, 9, (len(images), 1, 1))
    rows, columns = top + torch.arange(32).view(1, -1, 1), left + torch.arange(32).view(1, 1, -1)
    return padded[torch.arange(len(images)).view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)


def fit(model: nn.Module, images: Tensor, labels: Tensor, minutes: float) -> int:
    """Train in place with AdamW until `minutes` of processor time are over; the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    model.to(memory_format=torch.channels_last).train()  # a third less time per step than rows of channels
    started, steps, order = time.process_time(), 0, torch.empty(0, dtype=torch.long)
    while (spent := (time.process_time() - started) / (60 * minutes)) < 1:
        if len(order) < BATCH:
            order = torch.randperm(len(labels))
        drawn, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(spent / WARM_UP, 0.5 * (1 + math.cos(math.pi * spent)))
        loss = F.cross_entropy(
            model(augmented(images[drawn]).contiguous(memory_format=torch.channels_last)), labels[drawn], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return steps


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True)) / len(
            labels
        )


def write_project(folder: Path, name: str, model: nn.Module, case: Path) -> None:
    """What a user would have: model code, data code, a checkpoint, a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "model.py", folder)
    for file in ("data.py", "train.npz", "validation.npz"):
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(case / file)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")
    recipe = yaml.safe_load((HERE / "edgepress.yaml").read_text())
    recipe["project"], recipe["model"] = f"hard-{name}", {"factory": f"model:{name}", "checkpoint": f"{name}.safetensors"}
    (folder / "edgepress.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def main() -> int:
    """Train and write each net asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, default=14)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no net {unknown[0]!r}: there are {', '.join(NAMES)}")
    case = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")).absolute() / "cifar10"
    if not case.is_dir():
        print(f"no folder {case}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    nets = importlib.import_module("model")  # beside this file, first on the path
    sys.path.insert(1, str(case))
    data = importlib.import_module("data")
    for name in arguments.names or NAMES:
        torch.manual_seed(0)
        model = getattr(nets, name)()
        steps = fit(model, *data.train().tensors, arguments.minutes)
        write_project(arguments.folder / name, name, model.eval(), case)
        print(
            f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {steps} steps, "
            f"{100 * accuracy(model, *data.validation().tensors):.2f} % on validation",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
