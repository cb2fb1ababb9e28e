"""Pools written out for LiteRT: what torch's kernels give, in files that it runs; what it has a kernel for stays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("litert_torch")

from edgepress.exporters.litert_pools import pools
from tests.exporters.litert_cases import sqnr_db
from tests.exporters.test_operators import ROWS, OnMaps, computed

aten = torch.ops.aten


def image(*extents: int) -> Tensor:
    return torch.randn(2, 3, *extents, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ceil", [False, True])
def test_averages_are_those_of_torch_where_the_converter_has_no_kernel(ceil: bool) -> None:
    average, written = pools()[aten.avg_pool2d.default], 0
    for extent, window, stride, padding, include, divisor in product((7, 12), (2, 3), (1, 2, 3), (0, 1), (False, True), (None, 5)):
        x, rest = image(extent, extent + 1), (stride, padding, ceil, include, divisor)
        found = average(x, [window], *rest)
        if found is not NotImplemented:
            torch.testing.assert_close(found, F.avg_pool2d(x, window, *rest))
            written += 1
    assert written > 50
    x = image(13)
    torch.testing.assert_close(
        pools()[aten.avg_pool1d.default](x, [3], [2], [1], ceil, False), F.avg_pool1d(x, 3, 2, 1, ceil, count_include_pad=False)
    )


@pytest.mark.parametrize(("rank", "pool"), [(1, F.max_pool1d), (2, F.max_pool2d), (3, F.max_pool3d)])
def test_maxima_of_dilated_windows_are_those_of_torch(rank: int, pool: Callable[..., Tensor]) -> None:
    largest = pools()[getattr(aten, f"max_pool{rank}d").default]
    for extent, stride, padding, dilation, ceil in product((7, 12), (1, 2, 3), (0, 1), (2, 3), (False, True)):
        x = image(*range(extent, extent + rank))
        assert torch.equal(largest(x, [3], [stride], [padding], [dilation], ceil), pool(x, 3, stride, padding, dilation, ceil))


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),  # the shortcuts of ResNet-D
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
        lambda x: F.max_pool2d(x, 2, 2, 1, dilation=2, ceil_mode=True),
        lambda x: F.max_pool1d(x.flatten(2), 3, 2, dilation=2),
    ],
)
def test_files_run(operator: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(OnMaps(operator), {"image": images}, "litert", tmp_path)
    assert sqnr_db(found, expected) > 35
