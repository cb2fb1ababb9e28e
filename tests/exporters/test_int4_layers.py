"""Single layers with 4- or 2-bit weights: half or a quarter of the bytes, the same integer kernels, the same answers as in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package)

import onnx  # noqa: E402

from edgepress.compress.quantize import calibrate  # noqa: E402
from edgepress.compress.quantize.sensitivity import sensitivities  # noqa: E402
from edgepress.exporters import EXPORTERS  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.targets.errors import ConfigError, ExportError  # noqa: E402
from edgepress.targets.nouns import KernelReport, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.targets.rules import rules_for  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402

ROWS, WIDTH, TOKENS = 4096, 64, 8
SIGNATURE = Signature((TensorSpec("ids", "int64", (None, TOKENS)),), (TensorSpec("logits", "float32", (None, 5)),))


class Reader(nn.Module):
    """A table, a convolution over its rows, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.near = nn.Embedding(ROWS, WIDTH), nn.Conv2d(WIDTH, 96, (3, 1), padding=(1, 0))
        self.up, self.head = nn.Linear(96, 128), nn.Linear(128, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.near(self.words(ids).transpose(1, 2).unsqueeze(-1)).relu().mean((2, 3))
        return self.head(self.up(x).relu())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, tuple[str, ...]]:
    """The folder of the program and its statistics, samples, and every node that can have 4 bits."""
    torch.manual_seed(0)
    folder, ids = tmp_path_factory.mktemp("reader"), torch.randint(0, ROWS, (64, TOKENS))
    program = torch.export.export(Reader().eval(), (ids[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    statistics = calibrate(program, [(ids,)])
    torch.export.save(program, folder / "model.pt2")
    statistics.save(folder / "statistics")
    layers = sensitivities(program, statistics, rules_for("onnxruntime"), Scheme("mixed", "static"), [(ids,)], (4, 2))
    assert [layer.kind for layer in layers] == ["embedding", "conv", "linear", "linear"]
    assert all(layer.int4_noise is not None and layer.int4_noise > 4 * layer.noise for layer in layers)
    return folder, ids, tuple(layer.node for layer in layers)


def requested(
    saved: tuple[Path, Tensor, tuple[str, ...]], runtime: str, int4: tuple[str, ...], int2: tuple[str, ...] = (), **options: object
) -> ExportRequest:
    folder, ids, _ = saved
    target = Target("phone", runtime, "CPU", "mixed", options)
    scheme = Scheme("mixed", "static", int4_layers=int4, int2_layers=int2)
    return ExportRequest(folder / "model.pt2", SIGNATURE, folder / "statistics", target, scheme, (ids[:4].numpy(),))


def answers(request: ExportRequest, ids: Tensor, folder: Path) -> tuple[np.ndarray, np.ndarray, KernelReport, int]:
    """What the runtime and the PyTorch rendering answer, what ran, and the bytes of the file."""
    exporter = EXPORTERS.get(request.target.runtime)()
    artifact = exporter.export(request, folder)
    with RUNTIMES.get(request.target.runtime)().open(artifact, folder) as session:
        found, kernels = session.run({"ids": ids.numpy()})["logits"], session.kernels()
    (expected,), _ = exporter.compressed_outputs(request, (ids.numpy(),))
    return found, expected, kernels, sum(path.stat().st_size for path in folder.rglob("*") if path.suffix != ".xml" and path.is_file())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_4_bits_halve_the_file_and_run_in_the_same_integer_kernels(
    runtime: str, saved: tuple[Path, Tensor, tuple[str, ...]], tmp_path: Path
) -> None:
    _, ids, nodes = saved
    _, whole, kernels, size = answers(requested(saved, runtime, ()), ids, tmp_path / "eight")
    found, expected, narrow, smaller = answers(requested(saved, runtime, nodes), ids, tmp_path / "four")
    weights = ROWS * WIDTH + 96 * WIDTH * 3 + 96 * 128 + 128 * 5
    assert size - smaller == pytest.approx(weights / 2, rel=0.03)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max() < np.abs(whole - expected).max() * 10
    assert narrow.int8_macs_share == kernels.int8_macs_share == 1 and narrow.int8 >= kernels.int8 > 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_2_bits_are_a_quarter_and_run_in_the_same_integer_kernels(
    runtime: str, saved: tuple[Path, Tensor, tuple[str, ...]], tmp_path: Path
) -> None:
    _, ids, (*nodes, head) = saved
    _, whole, kernels, size = answers(requested(saved, runtime, ()), ids, tmp_path / "eight")
    found, expected, narrow, smaller = answers(requested(saved, runtime, (head,), tuple(nodes)), ids, tmp_path / "two")
    weights = ROWS * WIDTH + 96 * WIDTH * 3 + 96 * 128
    assert size - smaller == pytest.approx(weights * 3 / 4, rel=0.03)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max() < np.abs(whole - expected).max() * 10
    assert narrow.int8_macs_share == kernels.int8_macs_share == 1


def test_only_the_layers_that_were_named_have_4_bits(saved: tuple[Path, Tensor, tuple[str, ...]], tmp_path: Path) -> None:
    _, _, (_, conv, *_) = saved
    EXPORTERS.get("onnxruntime")().export(requested(saved, "onnxruntime", (conv,)), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    packed = [list(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT4]
    assert packed == [[96, WIDTH, 3, 1]]
    assert any(tensor.data_type == onnx.TensorProto.INT8 and list(tensor.dims) == [ROWS, WIDTH] for tensor in graph.initializer)


def test_an_opset_and_a_runtime_without_4_bit_weights_are_refused(saved: tuple[Path, Tensor, tuple[str, ...]], tmp_path: Path) -> None:
    nodes = saved[2]
    with pytest.raises(ConfigError, match=r"opset 20 has no 4-bit integers.*Use 21 or later"):
        EXPORTERS.get("onnxruntime")().export(requested(saved, "onnxruntime", nodes, opset=20), tmp_path / "old")
    with pytest.raises(ConfigError, match=r"cannot be in float and in 4 bits"):
        Scheme("mixed", "static", float_layers=nodes[1:2], int4_layers=nodes)
    with pytest.raises(ConfigError, match=r"'weights' cannot store single layers in 4 bits"):
        Scheme("mixed", "weights", int4_layers=nodes)
    with pytest.raises(ConfigError, match=r"cannot be in 4 bits and in 2 bits"):
        Scheme("mixed", "static", int4_layers=nodes, int2_layers=nodes[:1])
    exporter = EXPORTERS.get("litert")()
    if exporter.supports().usable:
        with pytest.raises(ExportError, match=r"cannot store single layers in 4 bits: its runtime has 8 bits and float"):
            exporter.export(requested(saved, "litert", nodes), tmp_path / "other")
        with pytest.raises(ExportError, match=r"cannot store single layers in 2 bits: its runtime has 8 bits and float"):
            exporter.export(requested(saved, "litert", (), nodes[:1]), tmp_path / "other")
