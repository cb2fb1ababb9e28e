"""Operators between integers that ONNX Runtime has slow kernels for, or none, give the same integers as what is written in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgepress.compress.quantize import phases  # noqa: E402
from edgepress.compress.quantize.unpacked import INTEGERS  # noqa: E402
from edgepress.exporters.onnx import OnnxRuntimeExporter  # noqa: E402
from edgepress.exporters.onnx_kernels import convolve_averages  # noqa: E402
from edgepress.exporters.onnx_layouts import repeat_rows  # noqa: E402
from edgepress.exporters.onnx_transposed import convolve_phases  # noqa: E402
from edgepress.targets.nouns import Scheme  # noqa: E402
from tests.exporters.litert_cases import sqnr_db  # noqa: E402
from tests.exporters.requests import request_of  # noqa: E402
from tests.exporters.test_onnx_kernels import answer, model_of, operators  # noqa: E402
from tests.exporters.test_operators import ROWS, OnMaps, computed  # noqa: E402
from tests.saturation import saturates  # noqa: E402

make = onnx.helper.make_node


def between_integers(node: Any, constants: dict[str, np.ndarray], shape: list[object], same: bool = False) -> bytes:
    """An operator that reads `a` and makes `b`, from bytes to bytes, on one grid or two."""
    grid = {"s": np.float32(0.02), "z": np.uint8(7), "s2": np.float32(0.031), "z2": np.uint8(90)}
    ends = ["s", "z"] if same else ["s2", "z2"]
    nodes = [make("DequantizeLinear", ["x", "s", "z"], ["a"]), *node, make("QuantizeLinear", ["b", *ends], ["y"])]
    return model_of(nodes, constants | grid, (onnx.TensorProto.UINT8, shape), (onnx.TensorProto.UINT8, len(shape)))


def rewritten(model: bytes, change: Any, folder: Path) -> bytes:
    path = folder / "model.onnx"
    path.write_bytes(model)
    change(path)
    return path.read_bytes()


def bytes_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_transposed_convolutions_are_convolutions_of_phases(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rank = data.draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(rank)]

    window, stride, padding = each(1, 5), each(1, 3), each(0, 2)
    extra = [data.draw(st.integers(0, min(s - 1, p + phases.covers(k, s) - k))) for k, s, p in zip(window, stride, padding, strict=True)]
    extents = [max(n, 1 + 2 * p) for n, p in zip(each(2, 5), padding, strict=True)]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-127, 128, (4, 3, *window), np.int8),
        "ws": rng.uniform(1e-3, 5e-3, 3).astype(np.float32),
        "wz": np.zeros(3, np.int8),
        "bias": rng.normal(0, 0.5, 3).astype(np.float32),
    }
    settings_ = {"strides": stride, "pads": padding * 2, "output_padding": extra, "kernel_shape": window}
    nodes = [
        make("DequantizeLinear", ["w", "ws", "wz"], ["kernel"], axis=1),
        make("ConvTranspose", ["a", "kernel", "bias"], ["sum"], **settings_),
        make("Relu", ["sum"], ["b"]),
    ]
    model = between_integers(nodes, constants, ["n", 4, *extents])
    found = rewritten(model, convolve_phases, tmp_path_factory.mktemp("model"))
    assert "ConvTranspose" not in operators(found) and "Conv" in operators(found)
    x = bytes_of(2, 4, *extents)
    difference = answer(model, x).astype(int) - answer(found, x)
    assert abs(difference).max() <= 1 and (difference != 0).mean() < 0.02  # ties: sums of floats on one side, of integers on the other


@pytest.mark.parametrize(
    ("extents", "given_"),
    [(["height", "width"], {}), ([4, 5], {"group": 2}), ([4, 5], {"dilations": [2, 1]})],
    ids=["sizes", "groups", "dilated"],
)
def test_transposed_convolutions_that_are_none_of_phases_stay(extents: list[object], given_: dict[str, Any], tmp_path: Path) -> None:
    constants = {"w": np.ones((4, 3, 2, 2), np.int8), "ws": np.float32(0.1), "wz": np.int8(0)}
    nodes = [
        make("DequantizeLinear", ["w", "ws", "wz"], ["kernel"]),
        make("ConvTranspose", ["a", "kernel"], ["b"], strides=[2, 2], **given_),
    ]
    model = between_integers(nodes, constants, ["n", 4, *extents])
    assert rewritten(model, convolve_phases, tmp_path) == model


def test_a_layer_of_groups_between_integers_answers_as_it_should(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    before, after = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    layers = nn.Sequential(before, nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2), nn.ReLU(), after)
    found, expected = computed(OnMaps(layers), {"image": images}, "onnxruntime", tmp_path)
    assert sqnr_db(found, expected) > 35


@pytest.mark.parametrize(
    "given_",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [5, 4], "strides": [1, 2]},
    ],
)
def test_averages_of_windows_are_depthwise_convolutions(given_: dict[str, Any], tmp_path: Path) -> None:
    model = between_integers([make("AveragePool", ["a"], ["b"], **given_)], {}, ["n", 5, 8, 9])
    found = rewritten(model, convolve_averages, tmp_path)
    assert "AveragePool" not in operators(found)
    x = bytes_of(2, 5, 8, 9)
    difference = answer(model, x).astype(int) - answer(found, x)
    assert abs(difference).max() <= 1 and (difference != 0).mean() < 0.02


@pytest.mark.parametrize(
    "given_", [{"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}]
)
def test_averages_that_leave_margins_out_stay(given_: dict[str, Any], tmp_path: Path) -> None:
    model = between_integers([make("AveragePool", ["a"], ["b"], **given_)], {}, ["n", 5, 8, 8])
    assert rewritten(model, convolve_averages, tmp_path) == model


@pytest.mark.parametrize("factors", [(2.0, 2.0), (3.0, 1.0), (1.0, 4.0), (2.0,)])
@pytest.mark.parametrize("way", [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")])
def test_repeated_places_are_copies_of_rows(factors: tuple[float, ...], way: tuple[str, str], tmp_path: Path) -> None:
    shape = (5, 4, 3)[: 1 + len(factors)]
    mode, nearest = way
    node = make("Resize", ["a", "", "f"], ["b"], mode="nearest", coordinate_transformation_mode=mode, nearest_mode=nearest)
    model = between_integers([node], {"f": np.array([1, 1, *factors], np.float32)}, ["n", *shape], same=True)
    found = rewritten(model, repeat_rows, tmp_path)
    assert "Resize" not in operators(found)
    x = bytes_of(2, *shape)
    np.testing.assert_array_equal(answer(found, x), answer(model, x))


@pytest.mark.parametrize(
    ("mode", "factor", "same"), [("linear", 2.0, True), ("nearest", 1.5, True), ("nearest", 2.0, False)], ids=["linear", "1.5", "grids"]
)
def test_other_ways_to_resize_stay(mode: str, factor: float, same: bool, tmp_path: Path) -> None:
    node = make("Resize", ["a", "", "f"], ["b"], mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    model = between_integers([node], {"f": np.array([1, 1, factor, factor], np.float32)}, ["n", 2, 4, 4], same=same)
    assert rewritten(model, repeat_rows, tmp_path) == model


class Decoder(nn.Module):
    """Transposed, multiplied, grouped and wide depthwise convolutions between integers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=8)),
            *(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.ReLU()),
            *(nn.ConvTranspose2d(16, 8, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_layers_that_are_slower_in_integers_compute_in_float_with_weights_of_a_byte_each(tmp_path: Path) -> None:
    from edgepress.validators.runtimes import RUNTIMES

    net, images = Decoder().eval(), torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    request = request_of(net, images, "onnxruntime", Scheme("int8", "static"), tmp_path)
    artifact = OnnxRuntimeExporter().export(request, tmp_path / "out")
    tensors = onnx.load(tmp_path / "out" / artifact.path).graph.initializer
    weights = {t.name: t.dims for t in tensors if len(t.dims) == 4 and t.data_type == onnx.TensorProto.INT8}
    assert len(weights) == 6
    (phased,) = (onnx.numpy_helper.to_array(t) for t in tensors if t.name == "conv_transpose2d_weight")
    assert phased.shape == (4 * 8, 8, 2, 2) and not saturates(np.moveaxis(phased, 1, -1).reshape(len(phased), -1))
    stored = [list(shape) for name, shape in weights.items() if name.endswith(INTEGERS)]
    assert sorted(stored) == [[16, 1, 3, 3], [16, 1, 7, 7], [16, 4, 2, 2], [16, 4, 3, 3]]
    with RUNTIMES.get("onnxruntime")().open(artifact, tmp_path / "out") as session:
        found, kernels = session.run({"x": images.numpy()})["y"], session.kernels()
    kinds = [op["op"].removeprefix("Fused") for op in kernels.ops]
    assert (kinds.count("Conv"), kinds.count("ConvTranspose")) == (4, 1)  # the first layer, which reads the image, and these four
    with torch.no_grad():
        want = net(images).numpy()
    assert np.square(found - want).mean() < 1e-3 * np.square(want).mean()


@pytest.mark.parametrize(("inputs", "extent", "floats"), [(4, 4, True), (8, 16, True), (8, 8, False), (16, 16, False)])
def test_small_groups_stay_float_where_that_is_faster(inputs: int, extent: int, floats: bool) -> None:
    from edgepress.compress.quantize import calibrate, render
    from edgepress.targets.rules import rules_for

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32 // inputs), nn.ReLU(), nn.Conv2d(32, 4, 1)
    )
    images = torch.randn(4, 3, extent, extent)
    program = torch.export.export(net.eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    rendered = render(program, calibrate(program, [(images,)]), rules_for("onnxruntime"), Scheme("int8", "static"))
    assert ("aten.conv2d" in {op["op"] for op in rendered.float_ops if "faster than in float" in str(op["reason"])}) == floats
