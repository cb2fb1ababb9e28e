"""4-bit weights in every runtime that has a kernel for them: the files run, and compute what the model in PyTorch computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

for package in ("onnxruntime", "openvino", "coremltools", "litert_torch"):
    pytest.importorskip(package)

from edgepress.compress.quantize import Int4Options, quantize_int4  # noqa: E402
from edgepress.exporters import EXPORTERS  # noqa: E402
from edgepress.exporters.base import Exporter, ExportRequest  # noqa: E402
from edgepress.targets.errors import ExportError, QuantizationError  # noqa: E402
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.targets.rules import Int4Rules, rules_for  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from tests.compress.quantize.decoder import LENGTH, VOCABULARY, decoder, exported, tokens  # noqa: E402

SIGNATURE = Signature((TensorSpec("ids", "int64", (None, LENGTH)),), (TensorSpec("logits", "float32", (None, VOCABULARY)),))
LAYERS = 8
SCHEME = Scheme("int4-weights", "weights")


@cache
def quantized(rules: Int4Rules, group: int) -> Path:
    """The decoder, rounded by GPTQ and saved."""
    path = Path(mkdtemp(prefix="edgepress-int4-")) / "model.pt2"
    torch.export.save(quantize_int4(decoder(1), Int4Options(rules, "gptq", group), lambda: [(tokens(16, 1),)]).program, path)
    return path


def request(runtime: str, program: Path, **options: object) -> ExportRequest:
    target = Target("phone", runtime, "CPU", "int4-weights", options)
    return ExportRequest(program, SIGNATURE, None, target, SCHEME, (tokens(4, 3).numpy(),))


@cache
def shipped(runtime: str, group: int = 32) -> tuple[Exporter, ExportRequest, Artifact, Path]:
    """The rounded decoder exported for a runtime, once for all tests."""
    rules, folder = rules_for(runtime).int4, Path(mkdtemp(prefix="edgepress-int4-"))
    assert rules is not None
    exporter, wanted = EXPORTERS.get(runtime)(), request(runtime, quantized(rules, group))
    return exporter, wanted, exporter.export(wanted, folder), folder


def relative_error(runtime: str, artifact: Artifact, folder: Path, expected: np.ndarray, ids: np.ndarray) -> float:
    with RUNTIMES.get(runtime)().open(artifact, folder) as session:
        got = session.run({"ids": ids})["logits"]
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


#: ONNX Runtime, OpenVINO and LiteRT round what a 4-bit layer reads to 8 bits while it runs; Core ML computes in float16.
@pytest.mark.parametrize(
    ("runtime", "group", "tolerance"),
    [("onnxruntime", 32, 0.03), ("onnxruntime", 16, 0.03), ("openvino", 32, 0.03), ("coreml", 32, 5e-3), ("litert", 32, 0.03)],
)
def test_a_file_computes_what_the_quantized_model_computes(runtime: str, group: int, tolerance: float) -> None:
    exporter, wanted, artifact, folder = shipped(runtime, group)
    ids = tokens(5, 7).numpy()
    (expected,), source = exporter.compressed_outputs(wanted, (ids,))
    assert source == "quantized PyTorch model"
    assert relative_error(runtime, artifact, folder, expected, ids) < tolerance
    with torch.no_grad():
        original = decoder(1).module()(torch.from_numpy(ids)).numpy()
    assert 2 * tolerance < np.linalg.norm(expected - original) / np.linalg.norm(original)  # else agreement would say nothing
    assert ("aten.embedding", 1) in [(op["op"], op["count"]) for op in artifact.float_ops]
    assert all(op["op"] != "aten.linear" for op in artifact.float_ops)


def test_onnx_holds_packed_weights_and_no_float_copies() -> None:
    import onnx

    _, _, artifact, folder = shipped("onnxruntime")
    model = onnx.load(folder / artifact.path)
    layers = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(layers) == LAYERS and all(node.domain == "com.microsoft" for node in layers)
    floats = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    integers = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8)
    weights = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 64 * 64
    assert integers == weights / 2 + weights / 32 / 2  # two to a byte, the zero points of groups too
    assert floats < weights / 32 + 64 * 64 + 2000  # scales, the embedding, norms and biases


def test_openvino_keeps_the_integers_packed_in_the_saved_file() -> None:
    import openvino

    folder = shipped("openvino")[-1]
    model = openvino.Core().read_model(folder / "model" / "model.xml")
    kinds = [op.get_element_type().get_type_name() for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    assert kinds.count("u4") == 2 * LAYERS
    assert (folder / "model" / "model.bin").stat().st_size < 60_000


class SideBySide(torch.nn.Module):
    """Three layers that read one input; (n, inputs) -> (n, 128)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(inputs, outputs) for outputs in (64, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=1)


@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (48, 16), (128, 128)])
def test_openvino_takes_an_odd_number_of_groups_without_cutting_at_run_time(inputs: int, group: int, tmp_path: Path) -> None:
    import openvino

    torch.manual_seed(0)
    x = torch.randn(4, inputs)
    program = exported(SideBySide(inputs), x[:2])
    torch.export.save(quantize_int4(program, Int4Options(Int4Rules(), "rtn", group)).program, tmp_path / "model.pt2")
    signature = Signature((TensorSpec("x", "float32", (None, inputs)),), (TensorSpec("y", "float32", (None, 128)),))
    target = Target("phone", "openvino", "CPU", "int4-weights")
    wanted, exporter = ExportRequest(tmp_path / "model.pt2", signature, None, target, SCHEME, (x.numpy(),)), EXPORTERS.get("openvino")()
    artifact = exporter.export(wanted, tmp_path / "out")
    model = openvino.Core().read_model(tmp_path / "out" / "model" / "model.xml")
    assert "Slice" not in [op.get_type_name() for op in model.get_ordered_ops()]
    (expected,), _ = exporter.compressed_outputs(wanted, (x.numpy(),))
    with RUNTIMES.get("openvino")().open(artifact, tmp_path / "out") as session:
        np.testing.assert_allclose(session.run({"x": x.numpy()})["y"], expected, atol=0.02 * np.abs(expected).max())


def test_coreml_holds_4_bit_blocks_and_refuses_older_systems(tmp_path: Path) -> None:
    from edgepress.validators.runtimes.mil.program import MilProgram

    exporter, wanted, artifact, folder = shipped("coreml")
    made = list(MilProgram.load(folder / artifact.path).made_by.values())
    assert made.count("constexpr_blockwise_shift_scale") == LAYERS
    with pytest.raises(ExportError, match=r"cannot run on iOS17: 4-bit weights in groups .* came with iOS18"):
        exporter.export(request("coreml", wanted.program, minimum_os="iOS17"), tmp_path)


def test_litert_files_ask_for_the_version_that_has_the_kernel(tmp_path: Path) -> None:
    from edgepress.exporters.litert_flatbuffer import TfliteFile

    _, _, artifact, folder = shipped("litert")
    assert ("FULLY_CONNECTED", 13) in TfliteFile((folder / artifact.path).read_bytes()).operators()
    rows = quantized(Int4Rules(symmetric=True, groups=(), rows=True), 32)
    wanted, exporter, ids = request("litert", rows), EXPORTERS.get("litert")(), tokens(5, 7).numpy()
    artifact = exporter.export(wanted, tmp_path)
    assert ("FULLY_CONNECTED", 12) in TfliteFile((tmp_path / artifact.path).read_bytes()).operators()
    (expected,), _ = exporter.compressed_outputs(wanted, (ids,))
    assert relative_error("litert", artifact, tmp_path, expected, ids) < 0.03


def litert_rows(layer: torch.nn.Module, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Answers (4, 5, 32) of a layer of 64 inputs, rounded to 4 bits in blocks of 32, by LiteRT and in PyTorch."""
    x, rules = torch.randn(4, 5, 64), rules_for("litert").int4
    assert rules is not None
    torch.export.save(quantize_int4(exported(layer, x[:2]), Int4Options(rules, "rtn", 32)).program, folder / "model.pt2")
    signature = Signature((TensorSpec("x", "float32", (None, 5, 64)),), (TensorSpec("logits", "float32", (None, 5, 32)),))
    target = Target("phone", "litert", "CPU", "int4-weights")
    wanted, exporter = ExportRequest(folder / "model.pt2", signature, None, target, SCHEME, (x.numpy(),)), EXPORTERS.get("litert")()
    artifact = exporter.export(wanted, folder / "out")
    (expected,), _ = exporter.compressed_outputs(wanted, (x.numpy(),))
    with RUNTIMES.get("litert")().open(artifact, folder / "out") as session:
        return session.run({"x": x.numpy()})["logits"], expected


def test_litert_keeps_the_grid_of_a_layer_behind_a_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 32))
    torch.nn.init.uniform_(layer[0].weight, 0.2, 2.0)
    torch.nn.init.normal_(layer[0].bias)
    got, expected = litert_rows(layer, tmp_path)
    assert np.linalg.norm(got - expected) < 0.03 * np.linalg.norm(expected)


def test_litert_loads_blocks_of_zeros_and_keeps_what_half_precision_has_of_small_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32, bias=False)
    sizes = torch.ones(32, 1).index_put((torch.arange(4),), torch.tensor([0.0, 1e-9, 1e-5, 1e-4])[:, None])
    layer.weight = torch.nn.Parameter(layer.weight * sizes)
    got, expected = litert_rows(layer, tmp_path)
    assert not got[..., 0].any() and not got[..., 1].any()
    errors, norms = (np.linalg.norm(values, axis=(0, 1)) for values in (got - expected, expected))
    assert (errors[3:] < 0.05 * norms[3:]).all() and errors[2] < 0.2 * norms[2]  # the steps of half precision are 6e-8 there


def test_equal_requests_give_equal_bytes(tmp_path: Path) -> None:
    for runtime, name in (("onnxruntime", "model.onnx"), ("openvino", "model/model.bin"), ("litert", "model.tflite")):
        _, wanted, _, folder = shipped(runtime)
        EXPORTERS.get(runtime)().export(wanted, tmp_path / runtime)
        assert (folder / name).read_bytes() == (tmp_path / runtime / name).read_bytes()


def test_a_float_program_and_a_runtime_without_the_kernel_are_refused(tmp_path: Path) -> None:
    torch.export.save(decoder(1), tmp_path / "float.pt2")
    with pytest.raises(QuantizationError, match=r"no 4-bit weights.*Call quantize_int4 first"):
        EXPORTERS.get("onnxruntime")().export(request("onnxruntime", tmp_path / "float.pt2"), tmp_path / "out")
    assert rules_for("tensorrt").int4 is None and "int4-weights" not in rules_for("tensorrt").precisions
