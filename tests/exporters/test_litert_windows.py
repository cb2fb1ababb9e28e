"""Layers that XNNPACK's integer kernels are slow at: depthwise ones over large windows, and in dynamic files those of few products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.compress.quantize import float_module
from edgepress.exporters.litert import FILE, LiteRtExporter
from edgepress.exporters.litert_flatbuffer import TfliteFile
from edgepress.exporters.litert_windows import LARGEST_WINDOW, convolve_grids, grids
from edgepress.targets.nouns import Scheme
from edgepress.validators.runtimes import RUNTIMES
from tests.exporters.requests import request_of


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_grids_cover_a_window_once(height: int, width: int) -> None:
    covered = np.zeros((height, width), int)
    found = grids(height, width)
    for rows, columns in found:
        assert rows.places * columns.places <= LARGEST_WINDOW
        for row in range(rows.places):
            for column in range(columns.places):
                covered[rows.first + row * rows.step, columns.first + column * columns.step] += 1
    assert (covered == 1).all()
    assert len(found) <= 2 * -(-height * width // LARGEST_WINDOW)


@pytest.mark.parametrize(("window", "count"), [((7, 7), 3), ((9, 9), 4), ((1, 31), 2), ((5, 7), 2)])
def test_usual_windows_need_no_margins_of_their_own(window: tuple[int, int], count: int) -> None:
    found = grids(*window)
    assert len(found) == count
    for grid in found:
        for line, extent in zip(grid, window, strict=True):
            before, behind = line.margins(extent)
            assert before == behind


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_grids_give_what_the_window_gives(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    window, padding, stride, dilation = pair(3, 9), pair(0, 6), pair(1, 3), pair(1, 2)
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, window, stride, padding, dilation, 3, bias=data.draw(st.booleans()))
    x = torch.randn(2, 3, 18, 17)
    module = convolve_grids(float_module(torch.export.export(net, (x,))))
    layers = module.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)
    assert all(node.args[1].meta["val"][0].numel() <= LARGEST_WINDOW for node in layers)
    torch.testing.assert_close(module(x), net(x), rtol=1e-4, atol=1e-5)


class Wide(nn.Module):
    """Depthwise convolutions over 7x7 and 1x31 values between pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images = nn.Sequential(
            *(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU())
        )
        self.rows = nn.Sequential(nn.Conv1d(8, 8, 31, 2, padding=15, groups=8), nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.images(x).flatten(2))


def made(net: nn.Module, scheme: Scheme, folder: Path) -> tuple[TfliteFile, float]:
    """The file, and the share of the square of torch's answers that is left of its error."""
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    artifact = LiteRtExporter().export(request_of(net, images, "litert", scheme, folder), folder / "out")
    with torch.no_grad():
        want = net(images[:1]).numpy()
    with RUNTIMES.get("litert")().open(artifact, folder / "out") as session:
        found = session.run({"x": images[:1].numpy()})["y"]
    return TfliteFile((folder / "out" / FILE).read_bytes()), float(np.square(found - want).mean() / np.square(want).mean())


def weights(file: TfliteFile, kind: str) -> list[int]:
    """Of the layers of a kind, the tensors of their weights."""
    return [int(operator.inputs[1]) for operator in file.graph.operators if file.name(operator) == kind]


@pytest.mark.parametrize("scheme", [Scheme("fp32", "float"), Scheme("int8", "static"), Scheme("int8-weights", "weights")])
def test_a_file_has_small_windows_alone_and_answers_as_torch_does(scheme: Scheme, tmp_path: Path) -> None:
    file, error = made(Wide(), scheme, tmp_path)
    layers = weights(file, "DEPTHWISE_CONV_2D")
    assert [int(np.prod(file.graph.tensors[weight].shape[1:3])) for weight in layers] == [21, 14, 14, 16, 15]
    if scheme.kind != "float":  # weights in a byte each, unpacked before layers that compute in float
        assert all(file.name(file.maker(weight)) == "DEQUANTIZE" for weight in layers)
    assert error < (1e-8 if scheme.kind == "float" else 1e-3)


class Strided(nn.Module):
    """Layers that save less in integers than rounding what they read takes, then two that save more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 200, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_layers_round_what_they_read_while_they_run_where_that_is_faster(tmp_path: Path) -> None:
    file, error = made(Strided(), Scheme("int8", "dynamic"), tmp_path)
    unpacked = [file.maker(weight) is not None for weight in weights(file, "CONV_2D")]
    assert unpacked == [True, True, False, False]  # the strided one behind a margin, 8 to 16 channels; 3x3, 24 to 200 channels
    assert [file.maker(weight) is not None for weight in weights(file, "DEPTHWISE_CONV_2D")] == [True]
    assert error < 1e-3
    reasons = {line["op"]: line for line in file.float_ops(Scheme("int8", "dynamic"))}
    assert (reasons["CONV_2D"]["count"], reasons["DEPTHWISE_CONV_2D"]["count"]) == (2, 1)
    assert "takes longer" in reasons["CONV_2D"]["reason"]
