"""Exported graphs on another device than the one they were exported on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepress.compress.training.devices import answering_on, move


class Positions(nn.Module):
    """Makes tensors of its own, converts them and looks one up: all of which an export writes down with a device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(4, device=x.device)
        mask = torch.full((4,), -1.0).to(x.device, torch.float32)
        return self.layer(x) + self.table[places] + places.to(torch.float32), mask


def test_an_exported_graph_computes_where_it_is_moved_to_and_back() -> None:
    x = torch.randn(2, 3)
    module = torch.export.export(Positions(), (x,)).module(check_guards=False)
    before, meta = module(x), torch.device("meta")
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    table = module.table.clone()
    move(module, meta)
    assert [output.device for output in module(x.to(meta))] == [meta, meta]  # a tensor of the CPU in between is refused
    module.to_empty(device="cpu")
    module.load_state_dict(weights, strict=False)
    module.table.copy_(table)
    move(module, torch.device("cpu"))
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)


def test_a_module_at_home_is_called_as_it_is() -> None:
    module = nn.Linear(3, 4)
    with answering_on(module, torch.device("cpu")):
        assert not module._forward_hooks and not module._forward_pre_hooks
