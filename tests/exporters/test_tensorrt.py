from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tensorrt_rtx_bindings")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from edgepress.exporters import tensorrt_build as build  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.exporters.onnx_bf16 import convert_to_bf16  # noqa: E402
from edgepress.exporters.tensorrt import TensorRtExporter, check_quantization, requested_capabilities, with_kernels  # noqa: E402
from edgepress.targets.errors import ConfigError, ExportError  # noqa: E402
from edgepress.targets.nouns import KernelReport, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.validators.runtimes.tensorrt import TensorRt  # noqa: E402
from tests.exporters.tensorrt_models import case  # noqa: E402


def export_and_run(name: str, precision: str, kind: str, folder: Path) -> tuple[np.ndarray, KernelReport, str]:
    model = case(name)
    artifact = TensorRtExporter().export(model.request(precision, kind), folder)
    with TensorRt().open(artifact, folder) as session:
        return session.run(model.feeds())["logits"], session.kernels(), session.executed_by


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_float_engines_build_and_their_kernels_have_the_precision(name: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    outputs, kernels, executed_by = export_and_run(name, precision, "float", tmp_path)
    assert np.abs(outputs - case(name).torch_outputs()).max() < tolerance
    counts = {"int8": kernels.int8, "fp16": kernels.fp16, "fp32": kernels.fp32, "unknown": kernels.unknown}
    assert counts.pop(precision) > 4
    assert set(counts.values()) == {0}
    assert kernels.int8_macs_share == 0.0
    if build.gpu_capability() is None:
        assert executed_by.startswith("onnxruntime ") and "engine not executed" in executed_by


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_bf16_engines_compute_in_it_and_are_replayed_with_its_rounding(name: str, tmp_path: Path) -> None:
    outputs, kernels, executed_by = export_and_run(name, "bf16", "float", tmp_path)
    if build.gpu_capability() is None:
        assert executed_by.endswith("(same graph, rounded to bfloat16; engine not executed)")
    expected = case(name).torch_outputs()
    assert 1e-4 < np.abs(outputs - expected).max() < 0.05 * np.abs(expected).max()
    assert kernels.fp16 > 4 and kernels.int8 == kernels.unknown == 0  # reports count all 16-bit floats as one
    assert {op["op"] for op in kernels.ops if op["type"] == "fp32"} <= {"pooling"}  # for which TensorRT-RTX has none in bfloat16
    model = onnx.load(tmp_path / "model" / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds and not kinds & {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    assert model.opset_import[0].version >= 22
    replay = onnx.load(tmp_path / "model" / "replay.onnx")
    rounded = [node for node in replay.graph.node if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.BFLOAT16]
    assert len(rounded) >= len(model.graph.node) / 2


def test_bf16_keeps_numbers_beyond_float16(tmp_path: Path) -> None:
    """Weights of 1e6 and 1e-6, which float16 has not; what ONNX Runtime replays is what PyTorch rounds to."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    scales = np.array([1.2345678e6, 1.2345678e-6], np.float32)
    nodes = [helper.make_node("Mul", ["x", "scales"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(scales, "scales")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(convert_to_bf16(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    exact = torch.from_numpy(x).bfloat16() * torch.from_numpy(scales).bfloat16()
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], -exact.float().numpy())


@pytest.mark.parametrize("op", ["HardSwish", "ConvTranspose"])
def test_ops_that_tensorrt_has_not_in_bfloat16_compute_in_float32(op: str, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 4, 2, 2) if op == "ConvTranspose" else torch.nn.Hardswish()).eval()
    x = torch.randn(4, 3, 8, 8)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), tmp_path / "model.pt2")
    with torch.no_grad():
        expected = net(x).numpy()
    signature = Signature((TensorSpec("x", "float32", (None, 3, 8, 8)),), (TensorSpec("y", "float32", (None, *expected.shape[1:])),))
    target = Target("tensorrt", "tensorrt", "NVIDIA GPU", "bf16", {"compute_capability": ["8.6"]})
    wanted = ExportRequest(tmp_path / "model.pt2", signature, None, target, Scheme("bf16", "float"), (x.numpy(),))
    artifact = TensorRtExporter().export(wanted, tmp_path / "out")
    with TensorRt().open(artifact, tmp_path / "out") as session:
        np.testing.assert_allclose(session.run({"x": x.numpy()})["y"], expected, atol=0.02 * np.abs(expected).max())


def test_bf16_is_refused_where_a_gpu_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute capability 7.5 has no kernels for precision bf16.*from 8.0"):
        TensorRtExporter().export(case("cnn").request("bf16", "float", compute_capability=["7.5"]), tmp_path)


@pytest.mark.parametrize(("name", "products"), [("cnn", 5), ("transformer", 6)])
def test_static_int8_engines_multiply_in_int8(name: str, products: int, tmp_path: Path) -> None:
    outputs, kernels, _ = export_and_run(name, "int8", "static", tmp_path)
    expected = case(name).torch_outputs()
    assert np.abs(outputs - expected).max() < 0.2 * np.abs(expected).max()
    assert np.abs(outputs - expected).max() > 1e-5  # something was rounded
    matrix = [op for op in kernels.ops if op["op"] == "matrix"]
    assert [op["type"] for op in matrix] == ["int8"] * products
    assert kernels.int8_macs_share == 1.0
    assert kernels.unknown == 0


@pytest.mark.parametrize(("name", "products"), [("cnn", 1), ("transformer", 7)])
def test_fp8_engines_multiply_matrices_in_floats_of_8_bits(name: str, products: int, tmp_path: Path) -> None:
    model = case(name)
    artifact = TensorRtExporter().export(model.request("fp8", "fp8", compute_capability=["8.9"]), tmp_path)
    with TensorRt().open(artifact, tmp_path) as session:
        outputs, kernels = session.run(model.feeds())["logits"], session.kernels()
    expected = model.torch_outputs()
    assert 1e-5 < np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()
    types = [op["type"] for op in kernels.ops if op["op"] == "matrix"]
    assert types.count("fp8") == products and {*types} <= {"fp8", "fp32"}
    assert kernels.fp8 == products and kernels.int8 == kernels.unknown == 0
    weights = [t for t in onnx.load(tmp_path / "model" / "model.onnx").graph.initializer if t.data_type == onnx.TensorProto.FLOAT8E4M3FN]
    assert sum(len(t.raw_data) > 1 for t in weights) >= min(products, 4)


def test_fp8_engines_are_built_for_those_usual_gpus_that_have_its_kernels() -> None:
    assert with_kernels("fp8", requested_capabilities({}), named=False, opset=21) == ["8.9"]


def test_fp8_is_refused_where_a_gpu_or_the_opset_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute capability 8.6 has no kernels for precision fp8.*from 8.9"):
        TensorRtExporter().export(case("cnn").request("fp8", "fp8", compute_capability=["8.6", "8.9"]), tmp_path / "a")
    with pytest.raises(ConfigError, match="opset 18 has too few operators in fp8"):
        TensorRtExporter().export(case("cnn").request("fp8", "fp8", opset=18), tmp_path / "b")


@pytest.mark.parametrize("kind", ["static-matmul", "weights"])
def test_the_other_int8_schemes_build(kind: str, tmp_path: Path) -> None:
    outputs, kernels, _ = export_and_run("transformer", "int8", kind, tmp_path)
    expected = case("transformer").torch_outputs()
    assert np.abs(outputs - expected).max() < 0.2 * np.abs(expected).max()
    share = kernels.int8_macs_share
    assert share is not None and (share == 0.0 if kind == "weights" else share > 0.5)


def test_the_folder_holds_an_engine_per_capability_the_onnx_and_the_rebuild_command(tmp_path: Path) -> None:
    artifact = TensorRtExporter().export(case("cnn").request("int8", "static", compute_capability=[8.9, "sm120", "8.9"]), tmp_path)
    assert artifact.path == "model"
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.onnx", "rebuild.sh", "sm120.engine", "sm89.engine"]
    assert artifact.facts["compute_capabilities"] == ["8.9", "12.0"]
    assert artifact.facts["opset"] == 21
    assert artifact.facts["engines"][1] | {"version": None} == {
        "file": "sm120.engine",
        "compute_capability": "12.0",
        "library": "tensorrt-rtx",
        "version": None,
    }
    assert "--maxShapes=image:64x3x16x16" in artifact.facts["rebuild"]


def test_rebuild_script_calls_the_tool_once_per_engine(tmp_path: Path) -> None:
    artifact = TensorRtExporter().export(case("transformer").request("fp32", "float", compute_capability=["8.6", "12.0"]), tmp_path)
    tool = tmp_path / "bin" / "tensorrt_rtx"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", tmp_path / "model" / "rebuild.sh"], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["--computeCapabilities=86", "--computeCapabilities=120"]
    assert "tensorrt_rtx " + lines[0] == artifact.facts["rebuild"]
    assert "--minShapes=ids:1x8,mask:1x8" in lines[0]


def test_a_batch_beyond_the_usual_range_widens_it(tmp_path: Path) -> None:
    assert build.BatchRange.around(8) == build.BatchRange(1, 8, 64)
    assert build.BatchRange.around(100) == build.BatchRange(1, 100, 100)


def test_an_unsupported_capability_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"capability 3\.0.*7\.5, 8\.0, 8\.6, 8\.9"):
        TensorRtExporter().export(case("cnn").request("fp32", "float", compute_capability=["8.6", "3.0"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_op_that_a_gpu_generation_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"7\.5: .*node_linear.*FP32 GEMM is not supported"):
        TensorRtExporter().export(case("cnn").request("fp32", "float", compute_capability=["7.5"]), tmp_path)


@pytest.mark.parametrize("bad", ["ampere", "", True, "8.6.1.1", ["8.6", None]])
def test_a_malformed_capability_is_named(bad: object) -> None:
    with pytest.raises(ConfigError, match="compute_capability"):
        requested_capabilities({"compute_capability": bad})


def test_an_empty_list_of_capabilities_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        requested_capabilities({"compute_capability": []})


def test_the_dynamic_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"int8 dynamic.*calibration"):
        TensorRtExporter().export(case("cnn").request("int8", "dynamic"), tmp_path)


def write_onnx(path: Path, nodes: list[object], initializers: list[object] = []) -> Path:  # noqa: B006
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "graph", value[:1], value[1:], initializers)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("mine", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def quantized(path: Path, zero: np.ndarray) -> Path:
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize_x"),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize_x"),
    ]
    return write_onnx(path, nodes, [onnx.numpy_helper.from_array(np.float32(0.1), "scale"), onnx.numpy_helper.from_array(zero, "zero")])


def test_a_node_the_parser_refuses_is_named_with_its_op(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_onnx(tmp_path / "m.onnx", [onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="mine")])
    with pytest.raises(ExportError, match=r"refuses strange \(Frobnicate\)"):
        build.build_engine(model, {"x": (4,)}, build.BatchRange.around(1), "8.6")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"\xff\x00 no protobuf")
    with pytest.raises(ExportError):
        build.build_engine(model, {"x": (4,)}, build.BatchRange.around(1), "8.6")


@pytest.mark.parametrize(("zero", "kind"), [(np.uint8(0), "uint8"), (np.int8(3), "int8"), (np.int32(0), "int32")])
def test_zero_points_that_tensorrt_would_misread_are_refused(zero: np.ndarray, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"quantize_x.*{kind}"):
        check_quantization(quantized(tmp_path / "m.onnx", zero))


def test_symmetric_int8_passes_and_builds_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = quantized(tmp_path / "m.onnx", np.int8(0))
    check_quantization(model)
    engine = build.build_engine(model, {"x": (4,)}, build.BatchRange.around(1), "8.9")
    assert engine.library == "tensorrt-rtx" and engine.warnings == ()
    assert capfd.readouterr() == ("", "")
