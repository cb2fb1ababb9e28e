"""The two real models, simulated in torch. Needs the folder `EDGEPRESS_CASES` names."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgepress.compress.quantize import calibrate, render
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

CASES = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")).resolve()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"the real cases are not at {CASES} (set EDGEPRESS_CASES)"),
]


def load(case: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quantize_{case}_{name}", CASES / case / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def exported(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(model.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def batches(inputs: tuple[torch.Tensor, ...], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    for start in range(0, len(inputs[0]), size):
        yield tuple(item[start : start + size] for item in inputs)


def predictions(module: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(*batch).argmax(1) for batch in batches(inputs, 50)])


def test_resnet20_loses_nothing_that_2000_images_can_show() -> None:
    pytest.importorskip("PIL")
    model = load("cifar10", "model").resnet20()
    model.load_state_dict(load_file(CASES / "cifar10" / "resnet20.safetensors"))
    data = load("cifar10", "data")
    train, (images, labels) = data.train().tensors[0], data.validation().tensors
    picked = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:512]
    program = exported(model, (images[:2],))
    statistics = calibrate(program, batches((train[picked],), 32))
    images, labels = images[:2000], labels[:2000]
    reference = predictions(program.module(), (images,))
    for runtime in ("onnxruntime", "tensorrt", "litert"):
        found = predictions(render(program, statistics, rules_for(runtime), Scheme("int8", "static")).module, (images,))
        drop = (reference == labels).double().mean() - (found == labels).double().mean()
        assert drop <= 0.007, runtime  # 2,000 images: about 1.5 % disagree, a standard error of 0.3 pp
        assert (found == reference).double().mean() > 0.975, runtime


def test_minilm_survives_its_attention_mask() -> None:
    pytest.importorskip("transformers")
    model = load("sst2", "model").minilm()
    model.load_state_dict(load_file(CASES / "sst2" / "minilm.safetensors"))
    data = load("sst2", "data")
    train, validation = data.train(), data.validation()
    program = exported(model, (validation.ids[:2], validation.mask[:2]))
    statistics = calibrate(program, batches((train.ids[:128], train.mask[:128]), 32))
    inputs = (validation.ids[:200], validation.mask[:200])
    reference = predictions(program.module(), inputs)
    for runtime in ("onnxruntime", "tensorrt"):
        found = predictions(render(program, statistics, rules_for(runtime), Scheme("int8", "static-matmul")).module, inputs)
        assert (found == reference).double().mean() > 0.95, runtime
