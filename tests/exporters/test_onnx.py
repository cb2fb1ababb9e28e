from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgepress.compress.quantize import calibrate  # noqa: E402
from edgepress.exporters import onnx_biases  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.exporters.onnx import OnnxRuntimeExporter, check_batch, lower_to_onnx, request_opset  # noqa: E402
from edgepress.exporters.onnx_passes import fold_at_load  # noqa: E402
from edgepress.targets.errors import ConfigError, ExportError, QuantizationError  # noqa: E402
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec  # noqa: E402
from tests.exporters.tensorrt_models import case  # noqa: E402
from tests.saturation import saturates  # noqa: E402


def request(name: str, precision: str, kind: str, **options: object) -> ExportRequest:
    model = case(name)
    target = Target("onnxruntime", "onnxruntime", "x86-64 CPU", precision, options)
    return ExportRequest(model.program, model.signature, model.statistics, target, Scheme(precision, kind), model.samples)


def run_file(path: Path, feeds: dict[str, np.ndarray], output: str = "logits") -> np.ndarray:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run([output], feeds)[0])


def op_counts(path: Path) -> dict[str, int]:
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_float_file_computes_what_torch_computes_at_any_batch(name: str, tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(request(name, "fp32", "float"), tmp_path)
    expected = case(name).torch_outputs()
    for batch in (1, 3, 8):
        got = run_file(tmp_path / artifact.path, {key: value[:batch] for key, value in case(name).feeds().items()})
        np.testing.assert_allclose(got, expected[:batch], atol=1e-5)
    assert artifact.facts == {"format": "onnx", "opset": 21, "runtime_minimum": "onnxruntime 1.18"}
    assert (artifact.float_ops, artifact.extra) == ((), ())


@pytest.mark.parametrize(("precision", "kind"), [("int8", "static"), ("int8", "dynamic")])
def test_equal_requests_give_equal_bytes_that_name_no_path_of_this_machine(precision: str, kind: str, tmp_path: Path) -> None:
    wanted = request("transformer", precision, kind)
    files = [tmp_path / folder / OnnxRuntimeExporter().export(wanted, tmp_path / folder).path for folder in ("first", "second")]
    first, second = (path.read_bytes() for path in files)
    assert first == second
    for trace in (str(Path.cwd()), str(tmp_path), "site-packages", "forward", ".py"):
        assert trace.encode() not in first


def test_a_static_file_holds_uint8_activations_and_8_bit_weights_that_saturate_nowhere(tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(request("cnn", "int8", "static"), tmp_path)
    model = onnx.load(tmp_path / artifact.path)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [value for value in tensors.values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(weights) == 6  # of five layers, and of an average of windows
    assert max(int(np.abs(weight).max()) for weight in weights) > 64
    windows = [np.moveaxis(weight, 1, -1) for weight in weights if weight.ndim == 4 and weight.shape[1] > 1]  # others are depthwise
    assert windows and not any(saturates(window.reshape(len(window), -1)) for window in windows)
    points = {tensors[n.input[2]].dtype for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert points == {np.dtype(np.uint8)}


class Tied(nn.Module):
    """One layer used twice, one without a bias, and a product that is read beside its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.plain = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.offset = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        product = self.plain(torch.relu(self.layer(torch.relu(self.layer(x)))))
        return (product + self.offset) * product


class Shown(Tied):
    """The last product is an output beside its sum with the bias."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = self.plain(torch.relu(self.layer(x)))
        return product + self.offset, product


def tied(folder: Path, model: type[nn.Module] = Tied) -> ExportRequest:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    program = torch.export.export(model().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(x,)]).save(folder / "statistics")
    names = ("logits",) if model is Tied else ("logits", "product")
    signature = Signature((TensorSpec("x", "float32", (None, 5, 8)),), tuple(TensorSpec(name, "float32", (None, 5, 8)) for name in names))
    target, scheme = Target("onnxruntime", "onnxruntime", "CPU", "int8"), Scheme("int8", "static")
    return ExportRequest(folder / "model.pt2", signature, folder / "statistics", target, scheme, (x.numpy(),))


@pytest.mark.parametrize(("name", "least"), [("transformer", 4), ("tied", 2)])
def test_integer_layers_add_their_bias_themselves_with_the_same_results(
    name: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tied(tmp_path) if name == "tied" else request(name, "int8", "static")
    feeds = {spec.name: sample for spec, sample in zip(wanted.signature.inputs, wanted.samples, strict=True)}
    fused = tmp_path / "fused" / OnnxRuntimeExporter().export(wanted, tmp_path / "fused").path
    monkeypatch.setattr(onnx_biases, "fuse_biases", lambda path: None)
    apart = tmp_path / "apart" / OnnxRuntimeExporter().export(wanted, tmp_path / "apart").path
    before, after = op_counts(apart), op_counts(fused)
    layers = after["MatMulIntegerToFloat"]
    assert layers >= least
    assert before["Add"] - after.get("Add", 0) == before["MatMul"] - after.get("MatMul", 0) == layers
    np.testing.assert_array_equal(run_file(fused, feeds), run_file(apart, feeds))


def test_a_product_that_is_an_output_too_stays_apart_from_its_bias(tmp_path: Path) -> None:
    wanted, exporter = tied(tmp_path, Shown), OnnxRuntimeExporter()
    file = tmp_path / "out" / exporter.export(wanted, tmp_path / "out").path
    assert op_counts(file)["MatMulIntegerToFloat"] == 1
    for name, expected in zip(("logits", "product"), exporter.compressed_outputs(wanted, wanted.samples)[0], strict=True):
        np.testing.assert_allclose(run_file(file, {"x": wanted.samples[0]}, name), expected, atol=1e-5)


def test_static_matmul_leaves_sums_in_float_and_says_so(tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(request("cnn", "int8", "static-matmul"), tmp_path)
    reasons = {op["op"]: op["reason"] for op in artifact.float_ops}
    assert reasons["aten.add"] == "this scheme leaves add in float"


def test_a_dynamic_file_quantizes_products_with_weights_and_lists_the_rest(tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(request("transformer", "int8", "dynamic"), tmp_path)
    counts = op_counts(tmp_path / artifact.path)
    assert counts["MatMulInteger"] == 5
    assert [(op["op"], op["count"]) for op in artifact.float_ops] == [("onnx.MatMul", 2)]
    expected = case("transformer").torch_outputs()
    error = np.abs(run_file(tmp_path / artifact.path, case("transformer").feeds()) - expected).max()
    assert 1e-5 < error < 0.1 * np.abs(expected).max()


def test_int8_weights_shrink_the_file_and_leave_nothing_to_dequantize_at_run_time(tmp_path: Path) -> None:
    whole = OnnxRuntimeExporter().export(request("cnn", "fp32", "float"), tmp_path / "fp32")
    small = OnnxRuntimeExporter().export(request("cnn", "int8-weights", "weights"), tmp_path / "int8")
    path = tmp_path / "int8" / small.path
    assert "DequantizeLinear" not in op_counts(path)
    tensors = onnx.load(path).graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in tensors) == 5
    assert path.stat().st_size < 0.8 * (tmp_path / "fp32" / whole.path).stat().st_size
    expected = case("cnn").torch_outputs()
    assert 0 < np.abs(run_file(path, case("cnn").feeds()) - expected).max() < 0.02 * np.abs(expected).max()


def test_weights_with_a_zero_point_are_refused(tmp_path: Path) -> None:
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"])
    weights = [tensor(np.ones((2, 2), np.int8), "w"), tensor(np.float32(0.1), "s"), tensor(np.int8(3), "z")]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "graph", [], [result], weights)), path)
    with pytest.raises(ExportError, match="'w' has a zero point"):
        fold_at_load(path)


@pytest.mark.parametrize("opset", [18])
def test_the_opset_asked_for_is_written_and_stated(opset: int, tmp_path: Path) -> None:
    artifact = OnnxRuntimeExporter().export(request("cnn", "fp32", "float", opset=opset), tmp_path)
    assert {entry.domain: entry.version for entry in onnx.load(tmp_path / artifact.path).opset_import}[""] == opset
    assert artifact.facts["opset"] == opset


@pytest.mark.parametrize("opset", [17, 99, "21", None])
def test_an_opset_that_cannot_be_written_is_refused(opset: object) -> None:
    with pytest.raises(ConfigError, match=r"opset .* cannot be written.*18, 19, 20"):
        request_opset({"opset": opset})


class FrozenBatch(nn.Module):
    """Turns the batch into a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), -1) if torch.jit.is_tracing() else x.reshape(4, -1)


def test_a_batch_frozen_by_the_model_is_refused_by_name(tmp_path: Path) -> None:
    x = np.ones((4, 2, 3), np.float32)
    signature = Signature((TensorSpec("x", "float32", (None, 2, 3)),), (TensorSpec("logits", "float32", (None, 6)),))
    torch.export.save(torch.export.export(FrozenBatch(), (torch.from_numpy(x),)), tmp_path / "model.pt2")
    target = Target("phone", "onnxruntime", "CPU", "fp32")
    wanted = ExportRequest(tmp_path / "model.pt2", signature, None, target, Scheme("fp32", "float"), (x,))
    with pytest.raises(ExportError, match="'phone': the exported file does not take every batch size"):
        OnnxRuntimeExporter().export(wanted, tmp_path / "out")


@pytest.mark.parametrize(("kind", "says"), [("dynamic", "would leave the whole model in float"), ("static", "int8-weights")])
def test_a_model_of_transposed_convolutions_of_groups_has_no_layer_to_compute_in_integers(kind: str, says: str, tmp_path: Path) -> None:
    x = torch.randn(4, 4, 5, 5)
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 2, 1, groups=2)).eval()
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, tmp_path / "model.pt2")
    calibrate(program, [(x,)]).save(tmp_path / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, 4, 5, 5)),), (TensorSpec("logits", "float32", (None, 2, 20, 20)),))
    target, scheme = Target("phone", "onnxruntime", "CPU", "int8"), Scheme("int8", kind)
    wanted = ExportRequest(tmp_path / "model.pt2", signature, tmp_path / "statistics", target, scheme, (x.numpy(),))
    with pytest.raises(QuantizationError, match=says):
        OnnxRuntimeExporter().export(wanted, tmp_path / "out")


def test_lowering_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = case("cnn")
    lower_to_onnx(torch.export.load(model.program), model.signature, model.samples, tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""


def test_signed_integers_before_a_pooling_are_checked_as_the_graph_has_them(tmp_path: Path) -> None:
    """onnxruntime's own optimization of this graph does not load: it gives int8 a zero point of uint8."""
    constants = {"scale": np.float32(0.1), "zero": np.int8(0), "axes": np.array([2, 3])}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        onnx.helper.make_node("MaxPool", ["d"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        onnx.helper.make_node("ReduceMean", ["m", "axes"], ["logits"], keepdims=0),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["batch", 3, 8, 8]), ("logits", ["batch", 3])))
    initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "pooled", [x], [y], initial)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(Exception, match="does not match y_zero_point"):
        run_file(tmp_path / "model.onnx", {"x": np.zeros((1, 3, 8, 8), np.float32)})
    signature = Signature((TensorSpec("x", "float32", (None, 3, 8, 8)),), (TensorSpec("logits", "float32", (None, 3)),))
    target, sample = Target("tensorrt", "tensorrt", "NVIDIA GPU", "int8"), np.ones((3, 3, 8, 8), np.float32)
    program = case("cnn").program
    check_batch(tmp_path / "model.onnx", ExportRequest(program, signature, None, target, Scheme("int8", "static"), (sample,)))


@pytest.mark.parametrize(
    ("kind", "model", "bits", "largest"),
    [
        ("static", "cnn", 7, 64),
        ("static", "cnn", 8, 128),
        ("static-matmul", "transformer", 8, 128),  # a static rendering too
        ("dynamic", "transformer", 7, 64),
        ("dynamic", "transformer", 8, 128),
    ],
)
def test_weights_use_the_bits_that_the_target_asks_for(kind: str, model: str, bits: int, largest: int, tmp_path: Path) -> None:
    wanted = request(model, "int8", kind)
    artifact = OnnxRuntimeExporter().export(replace(wanted, scheme=replace(wanted.scheme, weight_bits=bits)), tmp_path)
    tensors = onnx.load(tmp_path / artifact.path).graph.initializer
    integers = [onnx.numpy_helper.to_array(tensor).astype(int) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]
    weights = [np.abs(array).max() for array in integers if array.ndim > 1]
    assert weights and largest - 1 <= max(weights) <= largest


@pytest.mark.parametrize("bits", [0, 8])
def test_products_with_run_time_ranges_saturate_nowhere(bits: int, tmp_path: Path) -> None:
    """Unless all integers are asked for, which a CPU without VNNI gets wrong."""
    wanted = request("transformer", "int8", "dynamic")
    artifact = OnnxRuntimeExporter().export(replace(wanted, scheme=replace(wanted.scheme, weight_bits=bits)), tmp_path)
    graph = onnx.load(tmp_path / artifact.path).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rows = [tensors[node.input[1]].T for node in graph.node if node.op_type == "MatMulInteger"]
    assert rows and max(np.abs(each).max() for each in rows) > 64
    assert any(saturates(each) for each in rows) == (bits == 8)
