from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.exporters.base import ExportRequest
from edgepress.exporters.litert import LiteRtExporter
from edgepress.exporters.litert_convert import to_tflite
from edgepress.exporters.litert_flatbuffer import TfliteFile
from edgepress.exporters.litert_indexing import lower_indexing
from edgepress.exporters.litert_recipes import requantize
from edgepress.targets.errors import ConfigError, ExportError
from edgepress.targets.nouns import Signature, TensorSpec
from edgepress.validators.runtimes.litert import LiteRt
from tests.exporters.litert_cases import case, exported, request, run, sqnr_db


class MaskedSum(nn.Module):
    """Indexes a boolean mask with `arange` of its own dimensions, as Hugging Face models do, and with a permutation."""

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        keep = mask.to(torch.bool)
        rows, columns = torch.arange(values.shape[0])[:, None], torch.arange(values.shape[1])[None, :]
        backwards = torch.arange(values.shape[1] - 1, -1, -1)[None, :]
        both = keep[rows, columns] & keep[rows, backwards]
        return torch.where(both, values, 0.0).sum(1)


MASKED = (torch.arange(12, dtype=torch.float32).reshape(2, 6), torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]]))


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_float_file_computes_what_torch_computes_under_the_names_of_the_model(name: str) -> None:
    artifact, _ = exported(name, "fp32", "float")
    np.testing.assert_allclose(run(name, "fp32", "float"), case(name).torch_outputs(), atol=1e-4)
    assert [spec.name for spec in artifact.signature.inputs] == [spec.name for spec in case(name).signature.inputs]
    assert [spec.name for spec in artifact.signature.outputs] == ["logits"]
    assert {spec.shape[0] for spec in artifact.signature.inputs} == {1}
    assert {spec.dtype for spec in artifact.signature.inputs} == ({"float32"} if name == "cnn" else {"int32"})
    assert artifact.float_ops == ()


@pytest.mark.parametrize(
    ("name", "precision", "kind", "limit_db"),
    [
        ("cnn", "fp16", "float", 55.0),
        ("cnn", "int8-weights", "weights", 35.0),
        ("cnn", "int8", "dynamic", 30.0),
        ("cnn", "int8", "static", 35.0),
        ("cnn", "int8", "static-matmul", 35.0),  # its concatenation is float: without barriers it is clipped to 20 dB
        pytest.param("transformer", "fp16", "float", 55.0, marks=pytest.mark.slow),
        pytest.param("transformer", "int8-weights", "weights", 35.0, marks=pytest.mark.slow),
        ("transformer", "int8", "dynamic", 30.0),
        ("transformer", "int8", "static-matmul", 25.0),
    ],
)
def test_a_compressed_file_stays_close_to_the_float_model(name: str, precision: str, kind: str, limit_db: float) -> None:
    assert sqnr_db(run(name, precision, kind), case(name).torch_outputs()) > limit_db


def test_a_static_file_is_what_the_quantized_torch_model_computes() -> None:
    exporter, wanted = LiteRtExporter(), request("cnn", "int8", "static")
    exporter.rendered(wanted)
    expected, source = exporter.compressed_outputs(wanted, case("cnn").samples)
    assert source == "quantized PyTorch model"
    step = _quantization("cnn")["logits"]["scale"]
    assert np.abs(run("cnn", "int8", "static") - expected[0]).max() <= 2.5 * step


def _quantization(name: str) -> dict[str, dict[str, float]]:
    facts: dict[str, dict[str, float]] = exported(name, "int8", "static", "int8")[0].facts["quantization"]
    return facts


def test_float_io_wraps_the_integer_graph_and_int8_io_leaves_it_bare() -> None:
    with_float, folder = exported("cnn", "int8", "static")
    bare, bare_folder = exported("cnn", "int8", "static", "int8")
    names = [op for op, _ in TfliteFile((folder / with_float.path).read_bytes()).operators()]
    bare_names = [op for op, _ in TfliteFile((bare_folder / bare.path).read_bytes()).operators()]
    assert sorted(set(names) - set(bare_names)) == ["DEQUANTIZE", "QUANTIZE"]
    assert [spec.dtype for spec in (*with_float.signature.inputs, *with_float.signature.outputs)] == ["float32", "float32"]
    assert [spec.dtype for spec in (*bare.signature.inputs, *bare.signature.outputs)] == ["int8", "int8"]
    assert set(bare.facts["quantization"]) == {"image", "logits"}
    assert "quantization" not in with_float.facts
    np.testing.assert_allclose(run("cnn", "int8", "static"), run("cnn", "int8", "static", "int8"), atol=1e-6)


@pytest.mark.slow
def test_the_batch_of_the_target_is_the_batch_of_the_file() -> None:
    artifact, _ = exported("cnn", "fp32", "float", batch=3)
    assert artifact.signature.inputs[0].shape == (3, 3, 16, 16)
    np.testing.assert_allclose(run("cnn", "fp32", "float", batch=3), case("cnn").torch_outputs(), atol=1e-4)


def test_equal_requests_give_equal_bytes_that_name_no_path_of_this_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact, folder = exported("transformer", "int8", "static-matmul")
    LiteRtExporter().export(request("transformer", "int8", "static-matmul"), tmp_path)
    content = (tmp_path / artifact.path).read_bytes()
    assert content == (folder / artifact.path).read_bytes()
    for trace in (str(Path.cwd()), str(tmp_path), str(folder), "site-packages"):
        assert trace.encode() not in content
    assert capfd.readouterr().out == ""  # and the converter left stdout alone


def test_the_recipes_are_deterministic_and_leave_stdout_alone(capfd: pytest.CaptureFixture[str]) -> None:
    artifact, folder = exported("cnn", "fp32", "float")
    content = (folder / artifact.path).read_bytes()
    for kind in ("fp16", "dynamic", "weights"):
        assert requantize(content, kind) == requantize(content, kind)
    assert capfd.readouterr().out == ""


def test_ops_left_in_float_are_listed_with_a_reason() -> None:
    static, dynamic = exported("transformer", "int8", "static-matmul")[0], exported("transformer", "int8", "dynamic")[0]
    assert {"aten.layer_norm", "aten.softmax", "aten.matmul", "aten.gelu"} <= {line["op"] for line in static.float_ops}
    assert {"SOFTMAX", "BATCH_MATMUL"} <= {line["op"] for line in dynamic.float_ops}
    assert all(line["reason"] for line in (*static.float_ops, *dynamic.float_ops))
    assert exported("cnn", "int8", "static")[0].float_ops == ()


def test_a_boolean_mask_is_never_gathered() -> None:
    program = torch.export.export(MaskedSum(), MASKED)
    assert sum(node.target is torch.ops.aten.index.Tensor for node in program.graph.nodes) == 2
    module = lower_indexing(program)
    left = [node for node in module.graph.nodes if node.target is torch.ops.aten.index.Tensor]
    assert [node.args[0].meta["val"].dtype for node in left] == [torch.int32]  # the permutation; the other became a reshape
    torch.testing.assert_close(module(*MASKED), MaskedSum()(*MASKED), rtol=0, atol=0)


def test_a_masked_model_needs_no_op_newer_than_tflite_runtime_has() -> None:
    signature = Signature(
        (TensorSpec("values", "float32", (None, 6)), TensorSpec("mask", "int64", (None, 6))), (TensorSpec("sum", "float32", (None,)),)
    )
    module = torch.export.export(MaskedSum(), MASKED).module()
    content = to_tflite(module, signature, [value.numpy() for value in MASKED], 2, quantized=False)
    assert ("GATHER_ND", 5) not in TfliteFile(content).operators()


@pytest.mark.parametrize(
    ("precision", "kind", "io", "words"),
    [("int8", "static", "uint8", "io is 'uint8'"), ("int8", "dynamic", "int8", "io int8 asks for static int8")],
)
def test_an_io_type_the_scheme_cannot_have_is_refused(precision: str, kind: str, io: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        LiteRtExporter().export(request("cnn", precision, kind, {"io": io}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_float_file_an_int8_target_is_compared_with_keeps_float_io() -> None:
    artifact, _ = exported("cnn", "fp32", "float", "int8")
    assert (artifact.facts["io"], artifact.signature.inputs[0].dtype) == ("float", "float32")


def test_a_precision_it_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no bf16"):
        LiteRtExporter().export(request("cnn", "bf16", "float"), tmp_path)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class Turned(nn.Module):
    """Two layers whose weights stand in memory as their transposes do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Parameter((torch.randn(64, 64) / 8).t()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, self.first)), self.second)


def small(model: nn.Module, x: Tensor, folder: Path) -> ExportRequest:
    """A request for the float file of a model of one input and one output of its shape."""
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), folder / "model.pt2")
    shape = (None, *x.shape[1:])
    signature = Signature((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    return replace(request("cnn", "fp32", "float"), program=folder / "model.pt2", signature=signature, samples=(x.numpy(),))


def test_an_op_without_a_lowering_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bessel_j0"):
        LiteRtExporter().export(small(Bessel(), torch.ones(2, 3), tmp_path), tmp_path / "out")


def test_a_file_that_the_runtime_does_not_load_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"LiteRT does not run the file: .*STABLEHLO_SORT"):
        LiteRtExporter().export(small(Sorted(), torch.ones(2, 3), tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_weights_in_another_order_in_memory_stay_apart(tmp_path: Path) -> None:
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    artifact = LiteRtExporter().export(small(Turned(), x, tmp_path), tmp_path / "out")
    with LiteRt().open(artifact, tmp_path / "out") as session:
        np.testing.assert_allclose(session.run({"x": x.numpy()})["y"], Turned()(x).detach().numpy(), atol=1e-5)
