from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgepress.exporters.onnx import OnnxRuntimeExporter  # noqa: E402
from edgepress.targets.errors import ExecutionError  # noqa: E402
from edgepress.targets.nouns import Artifact, Signature, TensorSpec  # noqa: E402
from edgepress.validators.runtimes.onnxruntime import OnnxRuntime, OrtSession  # noqa: E402
from tests.exporters.tensorrt_models import case  # noqa: E402
from tests.exporters.test_onnx import request  # noqa: E402


@cache
def exported(name: str, precision: str, kind: str) -> tuple[Artifact, Path]:
    folder = Path(mkdtemp(prefix="edgepress-test-"))
    return OnnxRuntimeExporter().export(request(name, precision, kind), folder), folder


def opened(name: str, precision: str, kind: str) -> OrtSession:
    session = OnnxRuntime().open(*exported(name, precision, kind))
    assert isinstance(session, OrtSession)
    return session


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float"), ("fp16", "float")])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_float_session_agrees_with_torch_and_runs_no_integer_kernel(name: str, precision: str, kind: str) -> None:
    with opened(name, precision, kind) as session:
        outputs = session.run(case(name).feeds())["logits"]
        report = session.kernels()
    np.testing.assert_allclose(outputs, case(name).torch_outputs(), atol=1e-5 if precision == "fp32" else 5e-3)
    assert outputs.dtype == np.float32
    assert (report.int8, report.unknown, report.int8_macs_share) == (0, 0, 0.0)
    assert report.fp32 + report.fp16 >= 5
    assert session.executed_by.startswith("onnxruntime ") and session.executed_by.endswith(" CPU")


def test_a_static_cnn_runs_every_convolution_and_sum_in_integers() -> None:
    with opened("cnn", "int8", "static") as session:
        report = session.kernels()
    kinds = [op["op"] for op in report.ops if op["type"] == "int8"]
    assert kinds.count("QLinearConv") == 5  # and the average of windows
    assert "QLinearAdd" in kinds and "QGemm" in kinds
    assert report.int8_macs_share == 1.0
    assert not any(op["op"] in ("Conv", "Gemm", "MatMul", "Add") for op in report.ops)


def test_macs_are_those_of_the_model() -> None:
    # 3x3 stem 3->16, 3x3 depthwise 16, 1x1 16->16, 3x3 16->16, each on 16x16 outputs, and the 32->10 head
    expected = 256 * (16 * 27 + 16 * 9 + 16 * 16 + 16 * 144) + 320
    # in integers the average of 2x2 windows of 16 channels, on 8x8 outputs, is a convolution
    for precision, kind, more in (("int8", "static", 64 * 16 * 4), ("int8-weights", "weights", 0)):
        with opened("cnn", precision, kind) as session:
            assert sum(op.get("macs", 0) for op in session.kernels().ops) == expected + more


def test_dynamic_int8_counts_products_of_activations_as_float() -> None:
    with opened("transformer", "int8", "dynamic") as session:
        report = session.kernels()
    # qkv, out, up, down per 8 tokens, the head once; against two products of (heads 2, 8, 16) activations
    integer, activations = 8 * (32 * 96 + 32 * 32 + 2 * 32 * 64) + 64, 2 * 2 * 8 * 8 * 16
    assert report.int8 == 5
    assert report.int8_macs_share == pytest.approx(integer / (integer + activations))


def test_a_bound_call_computes_the_same() -> None:
    with opened("cnn", "int8", "static") as session:
        binding = session.binding(case("cnn").feeds())
        session.bind(case("cnn").feeds())()
        session._session.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(case("cnn").feeds())["logits"])


def test_layers_show_float_tensors_between_the_ops() -> None:
    with opened("cnn", "fp32", "float") as session:
        layers = session.layers(case("cnn").feeds())
        outputs = session.run(case("cnn").feeds())["logits"]
    assert len(layers) >= 8
    np.testing.assert_allclose(layers["logits"], outputs, atol=1e-6)
    assert all(value.dtype == np.float32 for value in layers.values())


def saturating_model(path: Path) -> Signature:
    """A convolution of 255 x 127 products: their sums fit 32 bits and not 16."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    constants = [
        tensor(np.float32(1 / 255), "s"),
        tensor(np.uint8(0), "z"),
        tensor(np.full((4, 4, 1, 1), 127, np.int8), "w"),
        tensor(np.float32(1 / 127), "ws"),
        tensor(np.int8(0), "wz"),
        tensor(np.float32(4 / 255), "os"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "os", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "os", "z"], ["y"]),
    ]
    shape = ["batch", 4, 2, 2]
    source = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "graph", [source], [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    spec = (None, 4, 2, 2)
    return Signature((TensorSpec("x", "float32", spec),), (TensorSpec("y", "float32", spec),))


def test_the_reference_computes_what_the_graph_says_and_uses_no_integer_kernel(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    signature = saturating_model(path)
    ones = {"x": np.ones((2, 4, 2, 2), np.float32)}
    with OrtSession(path, signature, reference_qdq=True, executed_by="onnxruntime (same graph; engine not executed)") as session:
        np.testing.assert_allclose(session.run(ones)["y"], 4.0, rtol=1e-6)
        assert session.kernels().int8 == 0
        assert session.executed_by == "onnxruntime (same graph; engine not executed)"
    with OrtSession(path, signature) as session:
        assert session.kernels().int8 == 1


def test_a_file_that_is_no_model_is_an_execution_error(tmp_path: Path) -> None:
    artifact, _ = exported("cnn", "fp32", "float")
    (tmp_path / artifact.path).write_bytes(b"not a model")
    with pytest.raises(ExecutionError, match=r"onnxruntime cannot load 'model\.onnx'"):
        OnnxRuntime().open(artifact, tmp_path)


def test_inputs_of_another_shape_are_an_execution_error() -> None:
    with opened("cnn", "fp32", "float") as session, pytest.raises(ExecutionError, match="CPU failed"):
        session.run({"image": np.zeros((1, 3, 5), np.float32)})


def test_an_output_the_file_lacks_is_named() -> None:
    artifact, folder = exported("cnn", "fp32", "float")
    signature = Signature(artifact.signature.inputs, (TensorSpec("scores", "float32", (None, 10)),))
    with pytest.raises(ExecutionError, match="no output 'scores'"):
        OrtSession(folder / artifact.path, signature)
