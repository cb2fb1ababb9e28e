"""A small first convolution stays in float in ONNX Runtime, and the integers behind it begin with channels last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import Rendered, Statistics, calibrate, render
from edgepress.compress.quantize.placement import ENTRY
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.onnx_layouts import turn_entries
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for

STATIC = Scheme("int8", "static")
SIGNATURE = Signature((TensorSpec("image", "float32", (None, 3, 16, 16)),), (TensorSpec("logits", "float32", (None, 5)),))


class Residual(nn.Module):
    """A first convolution, blocks of two whose sums read what it makes too, and a linear layer."""

    def __init__(self, kernel: int = 3, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, width, kernel, padding=kernel // 2), nn.Linear(width, 5)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * blocks))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.first(image))
        for first, second in zip(self.body[::2], self.body[1::2], strict=True):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.head(x.mean((2, 3)))


def made(model: nn.Module, runtime: str, scheme: Scheme = STATIC) -> tuple[torch.export.ExportedProgram, Statistics, Tensor, Rendered]:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(model.eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    statistics = calibrate(program, [(images,)])
    return program, statistics, images, render(program, statistics, rules_for(runtime), scheme)


@pytest.mark.parametrize(
    ("runtime", "kernel", "blocks", "kind", "stays"),
    [
        ("onnxruntime", 3, 2, "static", True),
        ("onnxruntime", 3, 2, "static-matmul", True),
        ("onnxruntime", 7, 4, "static", False),  # sums 147 products
        ("onnxruntime", 3, 0, "static", False),  # nearly all of the model
        ("litert", 3, 2, "static", False),
    ],
)
def test_a_small_first_convolution_stays_float_where_the_runtime_is_faster_so(
    runtime: str, kernel: int, blocks: int, kind: str, stays: bool
) -> None:
    rendered = made(Residual(kernel, blocks=blocks), runtime, Scheme("int8", kind))[-1]
    left = [(op["op"], op["count"]) for op in rendered.float_ops if op["reason"] == ENTRY]
    assert left == ([("aten.conv2d", 1)] if stays else [])


def test_integers_behind_a_float_convolution_keep_their_layout_through_residual_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    program, statistics, images, _ = made(Residual(), "onnxruntime")
    torch.export.save(program, tmp_path / "model.pt2")
    statistics.save(tmp_path / "statistics")
    target = Target("phone", "onnxruntime", "CPU", "int8", {})
    request = ExportRequest(tmp_path / "model.pt2", SIGNATURE, tmp_path / "statistics", target, STATIC, (images[:4].numpy(),))

    def export(folder: Path) -> tuple[int, np.ndarray]:
        """Transposes that are left when ONNX Runtime has loaded the file, and its answers."""
        artifact = EXPORTERS.get("onnxruntime")().export(request, folder)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
        session = onnxruntime.InferenceSession(str(folder / artifact.path), options, providers=["CPUExecutionProvider"])
        answers: np.ndarray = session.run(None, {"image": images.numpy()})[0]
        return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node].count("Transpose"), answers

    turned, answers = export(tmp_path / "turned")
    monkeypatch.setattr(f"{turn_entries.__module__}.{turn_entries.__name__}", lambda path: None)
    plain, same = export(tmp_path / "plain")
    assert (turned, plain) == (2, 4)
    assert np.allclose(answers, same, atol=1e-6)
