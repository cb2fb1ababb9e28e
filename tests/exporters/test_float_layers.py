"""Layers that a scheme keeps in float are float in the file of every target, and stay so when its runtime loads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("onnxruntime", "openvino", "coremltools", "litert_torch", "tensorrt_rtx_bindings"):
    pytest.importorskip(package)

from edgepress.compress.quantize.sensitivity import sensitivities  # noqa: E402
from edgepress.exporters import EXPORTERS  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.targets.rules import rules_for  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from tests.compress.quantize.nets import outputs_of, samples_of  # noqa: E402
from tests.compress.quantize.test_sensitivity import STATIC, spoilt  # noqa: E402

NAME = "residual"
SIGNATURE = Signature((TensorSpec("image", "float32", (None, 3, 16, 16)),), (TensorSpec("logits", "float32", (None, 5)),))
OPTIONS = {"tensorrt": {"compute_capability": ("8.9",)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    program, statistics = spoilt(NAME)
    torch.export.save(program, folder / "model.pt2")
    statistics.save(folder / "statistics")
    return folder


def error(runtime: str, saved: Path, scheme: Scheme, folder: Path) -> float:
    """Squared error of what the runtime answers, relative to the float model's answers."""
    target = Target("phone", runtime, "CPU", "int8", OPTIONS.get(runtime, {}))
    (samples,) = samples_of(NAME, 32)
    request = ExportRequest(saved / "model.pt2", SIGNATURE, saved / "statistics", target, scheme, (samples[:4].numpy(),))
    artifact = EXPORTERS.get(runtime)().export(request, folder)
    with RUNTIMES.get(runtime)().open(artifact, folder) as session:
        found = session.run({"image": samples.numpy()})["logits"]
    exact = outputs_of(spoilt(NAME)[0].module(), (samples,))[0].numpy()
    return float(np.square(found - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt", "coreml", "litert"])
def test_a_layer_kept_in_float_computes_in_float_in_its_runtime(runtime: str, saved: Path, tmp_path: Path) -> None:
    program, statistics = spoilt(NAME)
    layers = sensitivities(program, statistics, rules_for(runtime), STATIC, [samples_of(NAME, 16)])
    worst = max(layers, key=lambda layer: layer.noise)
    kept = error(runtime, saved, replace(STATIC, float_layers=(worst.node,)), tmp_path / "kept")
    assert kept < 0.2 * error(runtime, saved, STATIC, tmp_path / "all")
