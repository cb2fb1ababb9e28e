"""What LiteRT has no kernel for in three dimensions, in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.exporters.litert_transposed_volumes import convolve_planes
from edgepress.exporters.programs import program_of
from tests.exporters.litert_cases import sqnr_db
from tests.exporters.test_operators import ROWS, OnMaps, computed

SETTINGS: dict[str, Mapping[str, Any]] = {
    "twice the size": {"kernel_size": 2, "stride": 2},
    "margins": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "groups": {"kernel_size": (3, 4, 2), "stride": (1, 2, 2), "padding": (1, 1, 0), "dilation": (2, 1, 1), "groups": 2, "bias": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_transposed_convolution_is_the_sum_of_those_of_planes(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose3d(8, 4, **SETTINGS[name]).eval(), torch.randn(2, 8, 3, 4, 5)
    module = program_of(layer, (x,), dynamic=False).module(check_guards=False)
    module = convolve_planes(module)
    torch.testing.assert_close(module(x), layer(x))
    assert "aten.conv_transpose3d.input" not in {str(node.target) for node in module.graph.nodes}


class Volume(nn.Module):
    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x.reshape(-1, 2, 4, 6, 7))


@pytest.mark.parametrize(
    "operator",
    [
        lambda: lambda x: F.pad(x, (1, 2, 0, 1, 2, 1), mode="reflect"),
        lambda: nn.ConvTranspose3d(2, 8, **SETTINGS["twice the size"]),
        lambda: nn.ConvTranspose3d(2, 8, **SETTINGS["margins"]),
    ],
)
def test_files_run(operator: Callable[[], Callable[[Tensor], Tensor]], tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    found, expected = computed(OnMaps(Volume(operator())), {"image": images}, "litert", tmp_path)
    assert sqnr_db(found, expected) > 35
