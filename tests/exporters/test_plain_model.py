"""Attention in ONNX files: equal to PyTorch's on random inputs, and free of ops that only move shapes or look for NaN."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgepress.compress.quantize import plain_model  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.exporters.onnx import OnnxRuntimeExporter  # noqa: E402
from edgepress.exporters.openvino import OpenVinoExporter  # noqa: E402
from edgepress.exporters.tensorrt import TensorRtExporter  # noqa: E402
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec  # noqa: E402

TOKENS, WIDTH, HEADS = 6, 16, 2


class Attention(nn.Module):
    """x (n, tokens, width) and a mask (n, tokens) -> (n, tokens, width); `kind` says what the mask becomes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        visible = (mask > 0)[:, None, None, :].expand(-1, 1, TOKENS, -1)
        given = {"none": None, "causal": None, "bool": visible, "float": torch.where(visible, 0.0, float("-inf"))}[self.kind]
        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, given, is_causal=self.kind == "causal")
        return y.transpose(1, 2).reshape(-1, TOKENS, WIDTH) + 0 * mask[:, :, None]


def inputs(rows: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers, and masks that show each sample at least one token."""
    random = np.random.default_rng(seed)
    mask = (random.random((rows, TOKENS)) > 0.4).astype(np.float32)
    mask[:, 0] = 1
    return random.normal(size=(rows, TOKENS, WIDTH)).astype(np.float32), mask


def exported(kind: str, folder: Path) -> tuple[nn.Module, ExportRequest]:
    torch.manual_seed(0)
    module, samples = Attention(kind).eval(), inputs()
    program = torch.export.export(module, tuple(map(torch.from_numpy, samples)), dynamic_shapes=({0: torch.export.Dim("n")},) * 2)
    torch.export.save(program, folder / "model.pt2")
    signature = Signature(
        (TensorSpec("x", "float32", (None, TOKENS, WIDTH)), TensorSpec("mask", "float32", (None, TOKENS))),
        (TensorSpec("y", "float32", (None, TOKENS, WIDTH)),),
    )
    return module, ExportRequest(folder / "model.pt2", signature, None, Target("t", "t", "", "fp32"), Scheme("fp32", "float"), samples)


def answers(path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(("x", "mask"), arrays, strict=True)))[0])


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_file_computes_what_torch_computes_on_random_inputs(kind: str, seed: int, tmp_path: Path) -> None:
    module, request = exported(kind, tmp_path)
    artifact = OnnxRuntimeExporter().export(request, tmp_path)
    arrays = inputs(5, seed)
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, arrays)).numpy()
    np.testing.assert_allclose(answers(tmp_path / artifact.path, arrays), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
def test_keys_are_turned_round_without_their_shape_and_nothing_looks_for_nan(kind: str, tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(exported(kind, tmp_path)[1], tmp_path)
    ops = Counter(node.op_type for node in onnx.load(tmp_path / artifact.path).graph.node)
    assert not {"IsNaN", "Slice", "Shape"} & ops.keys(), ops
    assert ops["Softmax"] == 1


def test_a_program_without_attention_is_left_as_it_is() -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),))
    assert plain_model(program) is program


@pytest.mark.parametrize("exporter", [OnnxRuntimeExporter, OpenVinoExporter, TensorRtExporter])
def test_every_runtime_that_reads_onnx_gets_standard_ops_alone(exporter: type, tmp_path: Path) -> None:
    from edgepress.exporters.onnx import lower_request

    request = exported("bool", tmp_path)[1]
    lower_request(exporter(), request, tmp_path / "model.onnx", opset=21)
    assert {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node} == {""}
