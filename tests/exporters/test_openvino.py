from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

openvino = pytest.importorskip("openvino")

from edgepress.compress.quantize import Statistics, calibrate, render  # noqa: E402
from edgepress.exporters.base import ExportRequest  # noqa: E402
from edgepress.exporters.openvino import OpenVinoExporter  # noqa: E402
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec  # noqa: E402
from edgepress.targets.rules import rules_for  # noqa: E402
from edgepress.validators.runtimes import RUNTIMES  # noqa: E402
from edgepress.validators.runtimes.openvino import core  # noqa: E402
from tests.compress.quantize.nets import program_of, samples_of  # noqa: E402
from tests.exporters.tensorrt_models import case  # noqa: E402

STATIC = Scheme("int8", "static")


class Patches(nn.Module):
    """Tokens from a stem of convolutions, a class token repeated for every image, positions, one layer norm."""

    def __init__(self, convolution: type[nn.Conv2d | nn.ConvTranspose2d], width: int = 16) -> None:
        super().__init__()
        self.first, self.second = convolution(3, width, 2, 2), nn.Conv2d(width, width, 4, 4)
        self.token, self.norm, self.head = nn.Parameter(torch.randn(1, 1, width)), nn.LayerNorm(width), nn.Linear(width, 5)
        self.positions = nn.Parameter(torch.randn(1, 1 + (4 if convolution is nn.Conv2d else 64), width))
        nn.init.normal_(self.first.bias)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.second(F.relu(self.first(image))).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(tokens).mean(1))


def request(name: str, precision: str, kind: str) -> ExportRequest:
    model = case(name)
    target = Target("openvino", "openvino", "x86-64 CPU", precision)
    return ExportRequest(model.program, model.signature, model.statistics, target, Scheme(precision, kind), model.samples)


def constants(folder: Path) -> dict[str, int]:
    """Bytes of the saved model's constants by element type."""
    sizes: dict[str, int] = {}
    for op in openvino.Core().read_model(folder / "model" / "model.xml").get_ordered_ops():
        if op.get_type_name() == "Constant":
            kind = op.get_element_type().get_type_name()
            sizes[kind] = sizes.get(kind, 0) + op.get_byte_size() if hasattr(op, "get_byte_size") else sizes.get(kind, 0) + op.data.nbytes
    return sizes


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_names_and_dynamic_batch_are_those_of_the_signature(name: str, tmp_path: Path) -> None:
    artifact = OpenVinoExporter().export(request(name, "fp32", "float"), tmp_path)
    assert sorted(path.name for path in (tmp_path / artifact.path).iterdir()) == ["model.bin", "model.xml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    model = openvino.Core().read_model(tmp_path / artifact.path / "model.xml")
    assert [port.any_name for port in model.inputs] == [spec.name for spec in case(name).signature.inputs]
    assert model.output(0).get_names() == {"logits"}
    assert model.output(0).get_partial_shape()[0].is_dynamic
    assert artifact.facts["runtime_minimum"].startswith("openvino 20")


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float"), ("fp16", "float"), ("int8", "static")])
def test_equal_requests_give_equal_bytes_that_name_no_path_of_this_machine(precision: str, kind: str, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        OpenVinoExporter().export(request("cnn", precision, kind), tmp_path / folder)
    for name in ("model.xml", "model.bin"):
        first, second = ((tmp_path / folder / "model" / name).read_bytes() for folder in ("first", "second"))
        assert first == second
        assert str(tmp_path).encode() not in first and str(Path.cwd()).encode() not in first


def test_each_precision_is_stored_as_itself(tmp_path: Path) -> None:
    stored = {}
    for precision, kind in (("fp32", "float"), ("fp16", "float"), ("int8", "static"), ("int8-weights", "weights")):
        OpenVinoExporter().export(request("cnn", precision, kind), tmp_path / precision)
        stored[precision] = constants(tmp_path / precision)
    weights = 16 * 27 + 16 * 9 + 16 * 16 + 16 * 144 + 320
    assert stored["fp32"]["f32"] >= 4 * weights and "f16" not in stored["fp32"]
    assert stored["fp16"]["f16"] >= 2 * weights
    for precision in ("int8", "int8-weights"):
        assert stored[precision]["i8"] >= weights
        assert stored[precision].get("f32", 0) < 2 * weights


def test_bf16_is_a_way_to_run_fp32_weights(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        OpenVinoExporter().export(request("cnn", precision, "float"), tmp_path / precision)
    first, second = ((tmp_path / precision / "model" / "model.bin").read_bytes() for precision in ("fp32", "bf16"))
    assert first == second


def test_int8_weights_are_near_the_float_model(tmp_path: Path) -> None:
    artifact = OpenVinoExporter().export(request("transformer", "int8-weights", "weights"), tmp_path)
    compiled = core().compile_model(tmp_path / artifact.path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = case("transformer").torch_outputs()
    error = np.abs(compiled(case("transformer").feeds())["logits"] - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()


def as_exported(
    program: ExportedProgram, statistics: Statistics, images: torch.Tensor, folder: Path, scheme: Scheme = STATIC
) -> tuple[np.ndarray, np.ndarray]:
    """What the int8 file of a program of images computes, and what its rendering does; each of shape (n, classes)."""
    torch.export.save(program, folder / "model.pt2")
    statistics.save(folder / "statistics")
    signature = Signature((TensorSpec("image", "float32", (None, 3, 16, 16)),), (TensorSpec("logits", "float32", (None, 5)),))
    target = Target("openvino", "openvino", "x86-64 CPU", "int8")
    asked = ExportRequest(folder / "model.pt2", signature, folder / "statistics", target, scheme, (images[:4].numpy(),))
    artifact = OpenVinoExporter().export(asked, folder / "out")
    compiled = core().compile_model(folder / "out" / artifact.path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = render(program, statistics, rules_for("openvino"), scheme).module(images).numpy()
    return compiled({"image": images.numpy()})["logits"], expected


@pytest.mark.parametrize("convolution", [nn.Conv2d, nn.ConvTranspose2d])
def test_patches_with_a_class_token_are_computed_as_rendered(convolution: type[nn.Conv2d | nn.ConvTranspose2d], tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 16, 16)
    program = torch.export.export(Patches(convolution).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    statistics = calibrate(program, [(images,)])
    found, expected = as_exported(program, statistics, images, tmp_path)
    assert np.square(found - expected).mean() < 1e-5 * np.square(expected).mean()  # 8 bits themselves cost 1e-4


class Pooled(nn.Module):
    """A layer with a bias, the mean or maximum of what it gives at all positions, and a layer that reads that."""

    def __init__(self, layer: str, pooling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(48, 24) if layer == "linear" else nn.Conv1d(48, 24, 1)
        self.pooling, self.head = pooling, nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)  # (n, 48, 16)
        y = self.layer(rows.transpose(1, 2)).transpose(1, 2) if isinstance(self.layer, nn.Linear) else F.relu(self.layer(rows))
        return self.head(y.amax(2) if self.pooling == "max" else y.mean(2))


@pytest.mark.parametrize("scheme", [STATIC, Scheme("int8", "static-matmul")])
@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_pooling_behind_a_layer_with_a_scale_per_channel_is_computed_as_rendered(
    layer: str, pooling: str, scheme: Scheme, tmp_path: Path
) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Pooled(layer, pooling).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    found, expected = as_exported(program, calibrate(program, [(images,)]), images, tmp_path, scheme)
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()


class Hourglass(nn.Module):
    """Down, up, and beside what was there before: pooling, a transposed convolution, a concatenation, a permutation at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 5, 16)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        small = F.relu(self.middle(F.max_pool2d(wide, 2)))
        return self.last(torch.cat([self.up(small), wide], 1)).flatten(1)


def test_values_are_rounded_once_and_not_at_all_where_the_model_ends(tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Hourglass().eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    found, expected = as_exported(program, calibrate(program, [(images,)]), images, tmp_path)
    assert np.square(found - expected).mean() < 1e-5 * np.square(expected).mean()
    ops = openvino.Core().read_model(tmp_path / "out" / "model" / "model.xml").get_ordered_ops()
    rounded = [op.input_value(0).get_node().get_type_name() for op in ops if op.get_type_name() == "FakeQuantize"]
    assert rounded == [
        "Parameter",
        "Relu",
        "Relu",
        "Add",
    ]  # the image, two convolutions, the transposed one; not pooled or joined values again


def kernels(xml: Path) -> dict[str, str]:
    """Kind of op -> the name of the kernel that computes it, the last one's."""
    model = core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    return {op.get_rt_info()["layerType"].value: op.get_rt_info()["primitiveType"].value for op in model.get_ordered_ops()}


def written_by_kernels(xml: Path) -> dict[str, set[str]]:
    """Kind of op -> the types that its kernels write."""
    found: dict[str, set[str]] = {}
    for op in core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model().get_ordered_ops():
        found.setdefault(op.get_rt_info()["layerType"].value, set()).add(op.get_rt_info()["outputPrecisions"].value)
    return found


class Preactivated(nn.Module):
    """Maps that are joined, or added, and normalized before every convolution (Huang et al. 2017; He et al. 2016, "Identity Mappings")."""

    def __init__(self, joined: bool, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.joined, self.in_place = joined, in_place
        widths = [16, 24, 32] if joined else [16, 16, 16]
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(widths[-1], 5)
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, widths))
        self.layers = nn.ModuleList(nn.Conv2d(width, 8 if joined else 16, 3, padding=1) for width in widths[:2])
        for norm in self.norms:
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.1, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for norm, layer in zip(self.norms, self.layers, strict=False):
            new = layer(F.relu(norm(x), inplace=self.in_place))
            x = torch.cat([x, new], 1) if self.joined else x + new
        return self.head(F.relu(self.norms[-1](x), inplace=self.in_place).mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_a_batch_norm_between_integers_is_part_of_their_rounding(joined: bool, in_place: bool, tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Preactivated(joined, in_place).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    statistics = calibrate(program, [(images,)])
    found, expected = as_exported(program, statistics, images, tmp_path)
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()
    written = written_by_kernels(tmp_path / "out" / "model" / "model.xml")
    assert written["Convolution"] == {"u8"} and written["Reduce"] == {"u8"}
    assert written.get("Concatenation", {"u8"}) == {"u8"}
    assert "aten.batch_norm" not in {op["op"] for op in render(program, statistics, rules_for("openvino"), STATIC).float_ops}


class Wider(nn.Module):
    """Signed values that a transposed convolution reads, alone or beside a convolution."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.beside, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1) if beside else None, nn.Conv2d(24, 5, 3)
        self.up = nn.ConvTranspose2d(16, 16 if beside else 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), 0.1)
        up = F.leaky_relu(self.up(y), 0.1)
        return self.last(torch.cat([up, self.beside(y)], 1) if self.beside is not None else up).mean((2, 3))


@pytest.mark.parametrize("beside", [False, True])
def test_a_transposed_convolution_computes_signed_values_in_integers(beside: bool, tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Wider(beside).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    found, expected = as_exported(program, calibrate(program, [(images,)]), images, tmp_path)
    assert np.square(found - expected).mean() < 3e-4 * np.square(expected).mean()  # without VNNI the kernel halves weights
    deconvolution = kernels(tmp_path / "out" / "model" / "model.xml")["Deconvolution"]
    assert beside or deconvolution.endswith("_i8")  # the plugin takes unsigned integers where a convolution reads them too


class Pyramid(nn.Module):
    """Group normalizations, a shift that nothing can fold away, and a coarse map enlarged beside a fine one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, 2, 1), nn.Conv2d(24, 5, 3)
        self.norm, self.shift = nn.GroupNorm(4, 16), nn.Parameter(torch.randn(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.norm(self.fine(x)))
        wide = F.interpolate(self.coarse(fine), scale_factor=2.0)
        return self.last(torch.cat([fine + self.shift, wide], 1)).mean((2, 3))


def test_integers_are_normalized_in_groups_and_enlarged_as_they_are_and_shifted_in_floats(tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Pyramid().eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    statistics = calibrate(program, [(images,)])
    found, expected = as_exported(program, statistics, images, tmp_path)
    assert np.square(found - expected).mean() < 1e-5 * np.square(expected).mean()
    xml = tmp_path / "out" / "model" / "model.xml"
    ops = openvino.Core().read_model(xml).get_ordered_ops()
    rounded = [op.input_value(0).get_node().get_type_name() for op in ops if op.get_type_name() == "FakeQuantize"]
    assert sorted(rounded) == ["Add", "Add", "Add", "Parameter", "Relu"]  # two convolutions and the shift, not the enlarged map again
    compiled = core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kernels = {
        op.get_rt_info()["layerType"].value: op.get_rt_info()["primitiveType"].value for op in compiled.get_runtime_model().get_ops()
    }
    assert kernels["MVN"].endswith("_i8")
    reasons = {str(op["op"]): str(op["reason"]) for op in render(program, statistics, rules_for("openvino"), STATIC).float_ops}
    assert "within other kernels" in reasons["aten.add"]


class Padded(nn.Module):
    """Signed values of a convolution, padded, and a convolution that reads them."""

    def __init__(self, margins: tuple[int, ...], value: float, cut: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.margins, self.value, self.cut = margins, value, cut
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4 + sum(margins[4:]), 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = F.pad(y[:, :, ::2, ::2] if self.cut else y, self.margins, value=self.value)
        return self.second(y).mean((2, 3))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("margins", [(0, 1), (0, 0, 3, 0), (0, 0, 0, 0, 2, 3), (1, 1, 2, 0)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_padded_integers_are_computed_as_rendered(margins: tuple[int, ...], value: float, cut: bool, tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Padded(margins, value, cut).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    statistics = calibrate(program, [(images,)])
    found, expected = as_exported(program, statistics, images, tmp_path)
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()


@pytest.mark.parametrize("batch", [None, 1])
def test_layers_of_a_vision_transformer_compute_in_integers_with_a_fixed_batch_too(batch: int | None, tmp_path: Path) -> None:
    program, samples = program_of("vision-fused"), samples_of("vision-fused", 32)
    torch.export.save(program, tmp_path / "model.pt2")
    calibrate(program, [samples]).save(tmp_path / "statistics")
    (image,) = (value[:2].numpy() for value in samples)
    signature = Signature((TensorSpec("x", "float32", (None, *image.shape[1:])),), (TensorSpec("logits", "float32", (None, 5)),))
    target = Target("openvino", "openvino", "x86-64 CPU", "int8")
    artifact = OpenVinoExporter().export(
        ExportRequest(tmp_path / "model.pt2", signature, tmp_path / "statistics", target, STATIC, (image,)), tmp_path / "exported"
    )
    model = openvino.Core().read_model(tmp_path / "exported" / artifact.path / "model.xml")
    if batch is not None:
        model.reshape({"x": [batch, *image.shape[1:]]})
    ran = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model().get_ops()
    facts = [{name: value.astype(str) for name, value in op.get_rt_info().items()} for op in ran]
    layers = [fact["runtimePrecision"] for fact in facts if fact["layerType"] in ("FullyConnected", "Convolution")]
    assert layers == ["u8"] * 10


def test_what_ran_before_does_not_show_in_the_report(tmp_path: Path) -> None:
    artifact = OpenVinoExporter().export(request("transformer", "fp32", "float"), tmp_path)
    with RUNTIMES.get("openvino")().open(artifact, tmp_path) as session:
        before = session.kernels().ops
        session.run(case("transformer").feeds())
        after = session.kernels().ops
    counts = [[op.get("macs", 0) for op in ops] for ops in (before, after)]
    assert counts[0] == counts[1] and any(counts[0])


def test_a_refusal_names_the_op_and_what_is_wrong_with_it() -> None:
    said = (
        "Exception from src/inference/src/cpp/core.cpp:84:\nCheck 'false' failed at src/frontends/report.cpp:151:\n"
        "Model wasn't fully converted. Failed operations detailed log:\n-- AveragePool-18 with a message:\n"
        "While validating node 'y':\nKernel has size (dim: 320) larger than the data.\n\n"
        "Summary:\n-- Conversion is failed for: AveragePool-18\n"
    )
    assert OpenVinoExporter().reason(RuntimeError(said)) == "AveragePool-18: Kernel has size (dim: 320) larger than the data."
    assert OpenVinoExporter().reason(RuntimeError("no such file\nat all")) == "no such file"


class Causal(nn.Module):
    """A convolution of integers with a zero point, in front of whose dimensions zeros stand."""

    def __init__(self, margins: tuple[int, int, int, int], groups: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.margins = margins
        self.first, self.middle = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, groups=groups, dilation=(1, 2))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.3)
        return self.last(F.relu(self.middle(F.pad(x, self.margins)))).mean((2, 3))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("margins", [(4, 0, 0, 0), (0, 1, 0, 1), (1, 2, 2, 0)])
def test_convolutions_pad_what_they_read(margins: tuple[int, int, int, int], groups: int, tmp_path: Path) -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Causal(margins, groups).eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    found, expected = as_exported(program, calibrate(program, [(images,)]), images, tmp_path)
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()
    assert "Pad" not in {op.get_type_name() for op in core().read_model(tmp_path / "out" / "model" / "model.xml").get_ops()}
