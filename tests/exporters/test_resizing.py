"""Resizing written out gives what torch's kernels give at every size and scale, and leaves alone what a runtime has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgepress.exporters.decompositions import written_out
from edgepress.exporters.resizing import resizing

aten = torch.ops.aten
MODES = {
    ("nearest", 1): aten.upsample_nearest1d.vec,
    ("nearest", 2): aten.upsample_nearest2d.vec,
    ("linear", 1): aten.upsample_linear1d.vec,
    ("bilinear", 2): aten.upsample_bilinear2d.vec,
}


@pytest.mark.parametrize(("mode", "rank"), MODES)
@pytest.mark.parametrize("scale", [0.4, 0.7, 1.05, 1.3, 2.3])
def test_a_scale_that_was_asked_for_is_the_scale(mode: str, rank: int, scale: float) -> None:
    op = MODES[mode, rank]
    for extent in range(3, 24):
        x = torch.randn(1, 2, *[extent, extent + 3][:rank], generator=torch.Generator().manual_seed(extent))
        found = resizing(centres=False)[op](x, None, *([False] if "linear" in mode else []), [scale] * rank)
        if found is not NotImplemented:
            torch.testing.assert_close(found, F.interpolate(x, scale_factor=scale, mode=mode))
        else:
            sizes = [int(size * scale) for size in x.shape[2:]]
            torch.testing.assert_close(F.interpolate(x, size=sizes, mode=mode), F.interpolate(x, scale_factor=scale, mode=mode))


def test_nearest_reads_the_pixels_that_torch_reads_at_every_size() -> None:
    nearest = resizing(centres=True)[aten.upsample_nearest2d.vec]
    x = torch.randn(1, 2, 12, 7, generator=torch.Generator().manual_seed(0))
    for height in range(1, 40):
        for width in range(1, 40):
            found = nearest(x, [height, width], None)
            if height % 12 or width % 7:
                assert torch.equal(found, F.interpolate(x, size=(height, width)))
            else:
                assert found is NotImplemented


class Neck(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return F.interpolate(x, scale_factor=2), F.interpolate(x, size=(15, 15)), F.interpolate(x, size=(15, 15), mode="bilinear")


def test_what_the_runtime_computes_itself_stays_beside_what_is_written_out() -> None:
    x = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    program = written_out(torch.export.export(Neck().eval(), (x,)), resizing(centres=True))
    for found, wanted in zip(program.module()(x), Neck()(x), strict=True):
        torch.testing.assert_close(found, wanted)
    kinds = [str(node.target) for node in program.graph.nodes if "upsample" in str(node.target)]
    assert kinds == ["aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec"]
