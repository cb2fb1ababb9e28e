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
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.targets.errors import ExportError, QuantizationError  # noqa: E402
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.targets.rules import Int4Rules, rules_for  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from tests.compress.quantize.decoder import LENGTH, VOCABULARY, decoder, tokens  # noqa: E402

SIGNATURE = Signature((TensorSpec("ids", "int64", (None, LENGTH)),), (TensorSpec("logits", "float32", (None, VOCABULARY)),))
SCHEME = Scheme("int4-weights", "weights")


@cache
def quantized(rules: Int4Rules, group: int) -> Path:
    """The decoder, rounded by GPTQ and saved."""
    path = Path(mkdtemp(prefix="edgepress-int4-")) / "model.pt2"
    torch.export.save(quantize_int4(decoder(), Int4Options(rules, "gptq", group), lambda: [(tokens(16, 1),)]).program, path)
    return path


def request(runtime: str, program: Path, **options: object) -> ExportRequest:
    target = Target("phone", runtime, "CPU", "int4-weights", options)
    return ExportRequest(program, SIGNATURE, None, target, SCHEME, (tokens(4, 3).numpy(),))


def relative_error(runtime: str, artifact: Artifact, folder: Path, expected: np.ndarray, ids: np.ndarray) -> float:
    with RUNTIMES.get(runtime)().open(artifact, folder) as session:
        got = session.run({"ids": ids})["logits"]
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


#: OpenVINO and LiteRT round what a 4-bit layer reads to 8 bits while it runs; Core ML computes in float16.
@pytest.mark.parametrize(
    ("runtime", "group", "tolerance"),
    [("onnxruntime", 32, 1e-5), ("onnxruntime", 16, 1e-5), ("openvino", 32, 0.03), ("coreml", 64, 5e-3), ("litert", 32, 0.03)],
)
def test_a_file_computes_what_the_quantized_model_computes(runtime: str, group: int, tolerance: float, tmp_path: Path) -> None:
    rules = rules_for(runtime).int4
    assert rules is not None
    wanted, exporter, ids = request(runtime, quantized(rules, group)), EXPORTERS.get(runtime)(), tokens(5, 7).numpy()
    artifact = exporter.export(wanted, tmp_path)
    (expected,), source = exporter.compressed_outputs(wanted, (ids,))
    assert source == "quantized PyTorch model"
    assert relative_error(runtime, artifact, tmp_path, expected, ids) < tolerance
    with torch.no_grad():
        original = decoder().module()(torch.from_numpy(ids)).numpy()
    assert 2 * tolerance < np.linalg.norm(expected - original) / np.linalg.norm(original)  # else agreement would say nothing
    assert ("aten.embedding", 1) in [(op["op"], op["count"]) for op in artifact.float_ops]
    assert all(op["op"] != "aten.linear" for op in artifact.float_ops)


def test_onnx_holds_packed_weights_and_no_float_copies(tmp_path: Path) -> None:
    import onnx

    artifact = EXPORTERS.get("onnxruntime")().export(request("onnxruntime", quantized(Int4Rules(), 32)), tmp_path)
    model = onnx.load(tmp_path / artifact.path)
    layers = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(layers) == 15 and all(node.domain == "com.microsoft" for node in layers)
    floats = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    integers = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 64
    assert integers == weights / 2 + weights / 32 / 2  # two to a byte, the zero points of groups too
    assert floats < weights / 32 + 64 * 64 + 2000  # scales, the embedding, norms and biases


def test_openvino_keeps_the_integers_packed_in_the_saved_file(tmp_path: Path) -> None:
    import openvino

    EXPORTERS.get("openvino")().export(request("openvino", quantized(Int4Rules(), 32)), tmp_path)
    model = openvino.Core().read_model(tmp_path / "model" / "model.xml")
    kinds = [op.get_element_type().get_type_name() for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    assert kinds.count("u4") == 2 * 15
    assert (tmp_path / "model" / "model.bin").stat().st_size < 85_000


def test_coreml_holds_4_bit_blocks_and_refuses_older_systems(tmp_path: Path) -> None:
    from edgepress.validators.runtimes.mil.program import MilProgram

    program = quantized(Int4Rules(), 32)
    artifact = EXPORTERS.get("coreml")().export(request("coreml", program), tmp_path)
    made = list(MilProgram.load(tmp_path / artifact.path).made_by.values())
    assert made.count("constexpr_blockwise_shift_scale") == 15
    with pytest.raises(ExportError, match=r"cannot run on iOS17: 4-bit weights in groups .* came with iOS18"):
        EXPORTERS.get("coreml")().export(request("coreml", program, minimum_os="iOS17"), tmp_path / "old")


@pytest.mark.parametrize(("rules", "version"), [("blocks", 13), ("rows", 12)])
def test_litert_files_ask_for_the_version_that_has_the_kernel(rules: str, version: int, tmp_path: Path) -> None:
    from edgepress.exporters.litert_flatbuffer import TfliteFile

    kind = rules_for("litert").int4 if rules == "blocks" else Int4Rules(symmetric=True, groups=(), rows=True)
    assert kind is not None
    wanted, exporter, ids = request("litert", quantized(kind, 32)), EXPORTERS.get("litert")(), tokens(5, 7).numpy()
    artifact = exporter.export(wanted, tmp_path)
    file = TfliteFile((tmp_path / artifact.path).read_bytes())
    assert ("FULLY_CONNECTED", version) in file.operators()
    (expected,), _ = exporter.compressed_outputs(wanted, (ids,))
    assert relative_error("litert", artifact, tmp_path, expected, ids) < 0.03


def test_equal_requests_give_equal_bytes(tmp_path: Path) -> None:
    for runtime, name in (("onnxruntime", "model.onnx"), ("openvino", "model/model.bin"), ("litert", "model.tflite")):
        rules = rules_for(runtime).int4
        assert rules is not None
        for folder in ("first", "second"):
            EXPORTERS.get(runtime)().export(request(runtime, quantized(rules, 32)), tmp_path / runtime / folder)
        first, second = ((tmp_path / runtime / folder / name).read_bytes() for folder in ("first", "second"))
        assert first == second


def test_a_float_program_and_a_runtime_without_the_kernel_are_refused(tmp_path: Path) -> None:
    torch.export.save(decoder(), tmp_path / "float.pt2")
    with pytest.raises(QuantizationError, match=r"no 4-bit weights.*Call quantize_int4 first"):
        EXPORTERS.get("onnxruntime")().export(request("onnxruntime", tmp_path / "float.pt2"), tmp_path / "out")
    assert rules_for("tensorrt").int4 is None and "int4-weights" not in rules_for("tensorrt").precisions
