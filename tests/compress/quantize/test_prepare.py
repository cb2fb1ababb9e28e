import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.prepare import float_module


class Cuts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        whole = F.pad(x, (0, 0, 0, 0))[:, :8, 0:6] * 2
        return F.pad(whole, (1, -1)) + whole[:, :, :3].repeat(1, 1, 2)


def test_padding_by_nothing_and_slices_that_take_all_are_left_out() -> None:
    x = torch.randn(3, 8, 6)
    module = float_module(torch.export.export(Cuts(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    assert torch.equal(module(x[:1]), Cuts()(x[:1]))
    names = [op_name(node) for node in module.graph.nodes]
    assert names.count("slice") == names.count("pad") == 1  # the last slice, and what moves by one place
