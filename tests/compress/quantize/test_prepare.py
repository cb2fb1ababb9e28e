import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.prepare import canonical_module, float_module


class Pads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0)) * 2
        return F.pad(x, (1, -1)) + F.pad(x, (0, 0), "circular")


def test_padding_by_nothing_is_left_out() -> None:
    x = torch.randn(3, 8, 6)
    module = float_module(torch.export.export(Pads(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    assert torch.equal(module(x[:1]), Pads()(x[:1]))
    assert [op_name(node) for node in module.graph.nodes].count("pad") == 1  # what moves by one place


class Cut(nn.Module):
    """Maps joined, cut to the channels that are wanted, and added to in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.channels, self.first, self.second = channels, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        y = self.first(image)
        y = torch.cat([y, self.second(y)], 1)
        z = y[:, : self.channels]
        z += image.sum(1, keepdim=True)
        return y


@pytest.mark.parametrize(("channels", "scattered"), [(8, 0), (6, 1)])
def test_writing_to_a_slice_of_all_is_writing_to_the_tensor(channels: int, scattered: int) -> None:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    model = Cut(channels).eval()
    module = float_module(torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)))
    names = [op_name(node) for node in module.graph.nodes]
    assert names.count("slice_scatter") == scattered and (scattered or "slice" not in names)
    torch.testing.assert_close(module(images), model(images))


class Attention(nn.Module):
    """Attention whose queries are keys, or values, too, as in Reformer (Kitaev et al. 2020, section 2)."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.other, self.second = nn.Linear(32, 32), nn.Linear(32, 32), second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared, other = (layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.shared, self.other))
        operands = (shared, shared, other) if self.second else (shared, other, shared)
        return nn.functional.scaled_dot_product_attention(*operands)


@pytest.mark.parametrize("second", [True, False], ids=["keys", "values"])
def test_the_scale_of_attention_is_not_folded_into_what_keys_or_values_read(second: bool) -> None:
    model, x = Attention(second).eval(), torch.randn(4, 10, 32, generator=torch.Generator().manual_seed(1)) * 3
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with torch.no_grad():
        torch.testing.assert_close(canonical_module(program)(x), model(x), atol=1e-4, rtol=1e-4)
