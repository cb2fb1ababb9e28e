"""Each runtime's own quantizer makes a file of the float artifact that its runtime executes, and stays near the float model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("onnxruntime", "openvino", "coremltools", "litert_torch", "nncf", "ai_edge_quantizer", "modelopt"):
    pytest.importorskip(package)

from edgepress.exporters import EXPORTERS  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.exporters.native import NATIVE, native_quantizers  # noqa: E402
from edgepress.exporters.native.base import NativeRequest  # noqa: E402
from edgepress.targets.errors import ExportError, QuantizationError  # noqa: E402
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from tests.compress.quantize.nets import program_of, samples_of  # noqa: E402

WAYS = [(name, kind) for name in NATIVE.table() if name != "nncf, transformer" for kind in NATIVE.get(name).kinds]


def request(name: str, kind: str, net: str, folder: Path) -> NativeRequest:
    quantizer, (samples,) = NATIVE.get(name)(), samples_of(net, 32)
    outputs = program_of(net).module()(samples[:2]).shape[1:]
    signature = Signature(
        (TensorSpec("image", "float32", (None, *samples.shape[1:])),), (TensorSpec("logits", "float32", (None, *outputs)),)
    )
    torch.export.save(program_of(net), folder / "model.pt2")
    target = Target("device", quantizer.runtime, "CPU", "int8")
    base = Scheme(quantizer.base_precision, "float")
    float_request = ExportRequest(folder / "model.pt2", signature, None, target, base, (samples[:4].numpy(),))
    source = EXPORTERS.get(quantizer.runtime)().export(float_request, folder / "float")
    return NativeRequest(source, folder / "float", target, Scheme("int8", kind, tool=name), {"image": samples.numpy()})


def answers(runtime: str, artifact: Artifact, folder: Path) -> tuple[np.ndarray, int]:
    """Outputs, and the number of ops in integers."""
    with RUNTIMES.get(runtime)().open(artifact, folder) as session:
        return session.run({"image": samples_of("residual", 32)[0].numpy()})["logits"], session.kernels().int8


@pytest.mark.parametrize(("name", "kind"), WAYS)
def test_it_makes_a_file_in_integers_that_answers_nearly_as_the_float_one_does(name: str, kind: str, tmp_path: Path) -> None:
    asked = request(name, kind, "residual", tmp_path)
    runtime = asked.target.runtime
    artifact = NATIVE.get(name)().quantize(asked, tmp_path / "native")
    assert artifact.scheme.label == f"int8 {kind} ({name})" and artifact.signature == asked.source.signature
    exact, _ = answers(runtime, asked.source, asked.folder)
    found, integers = answers(runtime, artifact, tmp_path / "native")
    assert 0 < np.square(found - exact).sum() < 0.05 * np.square(exact).sum()
    assert integers > 0 or kind == "weights"


def test_the_transformer_patterns_of_nncf_are_for_models_that_have_attention(tmp_path: Path) -> None:
    name = "nncf, transformer"
    asked = request(name, "static", "vision-fused", tmp_path)
    assert NATIVE.get(name)().quantize(asked, tmp_path / "native").scheme.tool == name
    (tmp_path / "plain").mkdir()
    with pytest.raises(QuantizationError, match="the model has no attention"):
        NATIVE.get(name)().quantize(request(name, "static", "residual", tmp_path / "plain"), tmp_path / "refused")


def test_nncf_takes_a_model_that_looks_all_its_positions_up(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    draw = np.random.default_rng(0).standard_normal
    tokens = ops.parameter([-1, 8], np.int64, name="image")
    tables = [ops.constant(draw((rows, 16)).astype(np.float32)) for rows in (50, 64)]
    found = [ops.gather(table, indices, np.int64(0)) for table, indices in zip(tables, (tokens, np.arange(8)[None]), strict=True)]
    logits = ops.matmul(ops.add(*found), draw((16, 4)).astype(np.float32), False, False)
    logits.output(0).set_names({"logits"})
    (tmp_path / "float" / "model").mkdir(parents=True)
    openvino.save_model(openvino.Model([logits], [tokens]), tmp_path / "float" / "model" / "model.xml", compress_to_fp16=False)
    signature = Signature((TensorSpec("image", "int64", (None, 8)),), (TensorSpec("logits", "float32", (None, 8, 4)),))
    source = Artifact("model", "device", Scheme("fp32", "float"), signature, {}, ())
    samples = np.random.default_rng(1).integers(0, 50, (16, 8))
    target = Target("device", "openvino", "CPU", "int8")
    asked = NativeRequest(source, tmp_path / "float", target, Scheme("int8", "static", tool="nncf"), {"image": samples})
    NATIVE.get("nncf")().quantize(asked, tmp_path / "native")
    assert (tmp_path / "native" / "model" / "model.xml").exists()


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_the_inputs_and_outputs_of_a_file_are_of_the_types_it_promises(kind: str, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    artifact = NATIVE.get("ai-edge-quantizer")().quantize(request("ai-edge-quantizer", kind, "residual", tmp_path), tmp_path / "native")
    file = Interpreter(str(tmp_path / "native" / artifact.path))
    found = [np.dtype(detail["dtype"]).name for detail in (*file.get_input_details(), *file.get_output_details())]
    assert found == [spec.dtype for spec in (*artifact.signature.inputs, *artifact.signature.outputs)] == ["float32", "float32"]


def test_equal_requests_give_equal_files(tmp_path: Path) -> None:
    asked = request("onnxruntime.quantization", "static", "residual", tmp_path)
    files = []
    for turn in ("first", "second"):
        artifact = NATIVE.get("onnxruntime.quantization")().quantize(asked, tmp_path / turn)
        files.append((tmp_path / turn / artifact.path).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["onnxruntime.quantization", "modelopt"])
def test_what_a_tool_raises_names_the_tool(name: str, tmp_path: Path) -> None:
    asked = request(name, "static", "residual", tmp_path)
    broken = replace(asked, source=replace(asked.source, path="absent"))
    with pytest.raises(ExportError, match=f"{name} could not quantize the model: .*absent|{name} could not .*model.onnx"):
        NATIVE.get(name)().quantize(broken, tmp_path / "native")


def test_a_runtime_has_its_own_quantizers_and_no_other() -> None:
    assert set(native_quantizers("tensorrt")) == {"modelopt", "modelopt, max"}
    assert set(native_quantizers("openvino")) == {"nncf", "nncf, transformer"}
