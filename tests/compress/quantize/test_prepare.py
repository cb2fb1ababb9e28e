import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.prepare import float_module


class Pads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0)) * 2
        return F.pad(x, (1, -1)) + F.pad(x, (0, 0), "circular")


def test_padding_by_nothing_is_left_out() -> None:
    x = torch.randn(3, 8, 6)
    module = float_module(torch.export.export(Pads(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    assert torch.equal(module(x[:1]), Pads()(x[:1]))
    assert [op_name(node) for node in module.graph.nodes].count("pad") == 1  # what moves by one place
