"""Torch-Pruning's group-norm pruner on CIFAR-10 ResNet-20, trained by the same step with the same budget as ours.

    pip install torch-pruning
    EDGEPRESS_CASES=… python benchmarks/compression/torch_pruning_peer.py FOLDER [--speedup 2.0] [--global]

Prunes with GroupNormPruner (DepGraph, Fang et al. 2023) to the speed-up, exports the smaller model to FOLDER, and writes a recipe there
whose `distill` step is that of resnet20.yaml; run it with `edgepress run FOLDER/edgepress.yaml`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).parent


def original(cases: Path) -> torch.nn.Module:
    from safetensors.torch import load_file

    model: torch.nn.Module = importlib.import_module("model").resnet20()
    model.load_state_dict(load_file(cases / "resnet20.safetensors"))
    return model.eval()


def prune(model: torch.nn.Module, speedup: float, everywhere: bool) -> tuple[torch.nn.Module, float]:
    """The largest model that is at least `speedup` times cheaper, by bisection over the pruner's ratio."""
    import torch_pruning

    example = torch.randn(1, 3, 32, 32)
    whole, _ = torch_pruning.utils.count_ops_and_params(model, example)
    low, high = 0.0, 0.9
    best: tuple[torch.nn.Module, float] | None = None
    for _ in range(14):
        ratio = (low + high) / 2
        smaller = copy.deepcopy(model)
        importance = torch_pruning.importance.GroupMagnitudeImportance()
        settings: dict[str, Any] = {"global_pruning": everywhere, "pruning_ratio": ratio, "ignored_layers": [smaller.linear]}
        torch_pruning.pruner.GroupNormPruner(smaller, example, importance=importance, **settings).step()
        smaller(example)
        operations, _ = torch_pruning.utils.count_ops_and_params(smaller, example)
        reached = whole / operations
        if reached >= speedup:
            best, high = (smaller, reached), ratio
        else:
            low = ratio
    assert best is not None, "the speed-up is out of reach"
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--global", dest="everywhere", action="store_true", help="rank all layers together")
    arguments = parser.parse_args()
    cases = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")).absolute() / "cifar10"
    if not cases.is_dir():
        print(f"no folder {cases}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    sys.path.insert(0, str(cases))  # its model.py and data.py
    smaller, reached = prune(original(cases), arguments.speedup, arguments.everywhere)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    images = (torch.randn(2, 3, 32, 32),)
    torch.export.save(torch.export.export(smaller, images, dynamic_shapes=batch), arguments.folder / "peer.pt2")
    torch.export.save(torch.export.export(original(cases), images, dynamic_shapes=batch), arguments.folder / "original.pt2")
    for name in ("data.py", "train.npz", "validation.npz"):
        link = arguments.folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(cases / name)
    ours = yaml.safe_load((HERE / "resnet20.yaml").read_text())
    distill = next(step["distill"] for step in ours["compress"] if "distill" in step)
    recipe = {
        "project": "torch-pruning-peer",
        "model": {"checkpoint": "peer.pt2"},
        "data": ours["data"],
        "metric": "accuracy",
        "compress": [{"distill": {**distill, "teacher": "original.pt2"}}],
        "targets": ["onnxruntime"],
        "gates": {"size": {"max": "2MB"}},
    }
    (arguments.folder / "edgepress.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    print(f"{reached:.3f}x fewer MACs; now: edgepress run {arguments.folder / 'edgepress.yaml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
