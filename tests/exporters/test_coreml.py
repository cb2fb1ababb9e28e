from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from edgepress.exporters.coreml import CoreMlExporter, minimum_os_of
from edgepress.exporters.coreml_ops import decompose, unknown_ops
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import KernelReport, Scheme
from edgepress.validators.runtimes.coreml import ReferenceSession
from tests.exporters.coreml_cases import MODELS, Case, case


def sqnr(got: np.ndarray, want: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10((want**2).sum() / max(1e-20, ((got - want) ** 2).sum())))


def worst_sqnr(model: Case, folder: Path, precision: str, kind: str = "float", **options: object) -> tuple[float, KernelReport]:
    artifact = CoreMlExporter().export(model.request(precision, kind, **options), folder)
    with ReferenceSession(folder / artifact.path, artifact.signature) as session:
        outputs = session.run(model.feeds())
        report = session.kernels()
    return min(sqnr(outputs[f"output_{i}"], want) for i, want in enumerate(model.expected())), report


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(
        "".join(f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files).encode()
    ).hexdigest()


@pytest.mark.parametrize("name", MODELS)
def test_float_packages_of_every_architecture_compute_what_torch_computes(name: str, tmp_path: Path) -> None:
    found, report = worst_sqnr(case(name), tmp_path, "fp16")
    assert found > 50
    assert report.fp16 > 2
    assert (report.int8, report.fp32, report.unknown) == (0, 0, 0)


def test_fp32_packages_compute_in_fp32(tmp_path: Path) -> None:
    found, report = worst_sqnr(case("residual"), tmp_path, "fp32")
    assert found > 100
    assert (report.fp16, report.int8) == (0, 0)


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [
        ("residual", "static", 20),
        ("residual", "static-matmul", 20),
        ("residual", "weights", 35),
        ("pixels", "static-matmul", 20),
        ("attention", "static-matmul", 20),
        ("attention", "weights", 35),
    ],
)
def test_int8_schemes_stay_close_and_show_their_kernels(name: str, kind: str, least: float, tmp_path: Path) -> None:
    found, report = worst_sqnr(case(name), tmp_path, "int8", kind)
    assert found > least
    assert report.int8_macs_share == (0.0 if kind == "weights" else 1.0)
    if kind == "static":
        assert report.int8 > report.fp16


def test_a_type_that_core_ml_has_not_is_named(tmp_path: Path) -> None:
    request = case("residual").request("fp16")
    outputs = tuple(replace(spec, dtype="complex64") for spec in request.signature.outputs)
    with pytest.raises(ExportError, match="'output_0' is of type complex64"):
        CoreMlExporter().export(replace(request, signature=replace(request.signature, outputs=outputs)), tmp_path)


def test_integer_weights_shrink_the_file(tmp_path: Path) -> None:
    def weights(kind: str, precision: str) -> int:
        CoreMlExporter().export(case("attention").request(precision, kind), tmp_path / kind)
        return sum(path.stat().st_size for path in (tmp_path / kind).rglob("weight.bin"))

    assert weights("weights", "int8") < weights("float", "fp16") - 1500  # 2,048 weights of 2 bytes became 1 byte each, plus scales


@pytest.mark.parametrize("minimum_os", ["iOS17", "macOS14"])
def test_older_systems_get_the_ops_they_have(minimum_os: str, tmp_path: Path) -> None:
    artifact = CoreMlExporter().export(case("residual").request("int8", "static", minimum_os=minimum_os), tmp_path)
    assert artifact.facts["minimum_os"] == minimum_os
    assert artifact.facts["specification_version"] == 8
    with ReferenceSession(tmp_path / artifact.path, artifact.signature) as session:
        assert "constexpr_affine_dequantize" in session.program.made_by.values()
        assert sqnr(session.run(case("residual").feeds())["output_0"], case("residual").expected()[0]) > 20


@pytest.mark.parametrize(
    ("minimum_os", "kind", "fitting"),
    [("iOS16", "static", "iOS17"), ("macOS12", "static-matmul", "macOS14"), ("iOS15", "weights", "iOS16")],
)
def test_a_system_without_the_ops_is_refused_with_the_one_that_has_them(minimum_os: str, kind: str, fitting: str) -> None:
    with pytest.raises(ExportError, match=rf"cannot run on {minimum_os}.*minimum_os: {fitting}"):
        minimum_os_of(minimum_os, "coreml", Scheme("int8", kind))


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown minimum_os 'iOS14'"):
        CoreMlExporter().export(case("residual").request("fp16", minimum_os="iOS14"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_types_and_batch_are_those_promised(tmp_path: Path) -> None:
    import coremltools as ct

    artifact = CoreMlExporter().export(case("attention").request("fp16", batch=2), tmp_path)
    description = ct.models.MLModel(str(tmp_path / artifact.path), skip_model_load=True).get_spec().description
    kinds = ct.proto.FeatureTypes_pb2.ArrayFeatureType
    inputs = [(f.name, tuple(f.type.multiArrayType.shape), f.type.multiArrayType.dataType) for f in description.input]
    assert inputs == [("ids", (2, 8), kinds.INT32), ("mask", (2, 8), kinds.INT32)]
    assert [(f.name, f.type.multiArrayType.dataType) for f in description.output] == [("output_0", kinds.FLOAT32)]
    assert [(spec.name, spec.dtype, spec.shape) for spec in artifact.signature.inputs] == [
        ("ids", "int32", (2, 8)),
        ("mask", "int32", (2, 8)),
    ]
    assert artifact.signature.outputs[0].shape == (2, 3)


def test_two_exports_have_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        CoreMlExporter().export(case("residual").request("int8", "static"), tmp_path / folder)
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CoreMlExporter().export(case("residual").request("fp16"), tmp_path)
    assert capfd.readouterr().out == ""


def test_an_op_without_a_rule_is_named_with_a_remedy() -> None:
    remedy = CoreMlExporter().remedy(NotImplementedError("Unsupported fx node fft_1, kind fft_rfft"))
    assert "'fft_rfft'" in remedy


class Masks(nn.Module):
    """What masks are made of: booleans combined bit by bit, and `where` with a number."""

    def forward(self, x: Tensor) -> Tensor:
        kept = ((x > 0) | (x < -1)) ^ torch.bitwise_or(x > 2, x < -2)
        return torch.where(kept, x, -1.0) + torch.where(kept, 0.5, x)


def test_what_masks_are_made_of_comes_down_to_ops_that_have_rules() -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    program = decompose(torch.export.export(Masks(), (x,)))
    assert not unknown_ops(program)
    assert torch.equal(program.module()(x), Masks()(x))
