"""Attention written out as matmul, mask, softmax, matmul."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from edgepress.compress.quantize import calibrate, canonical_module
from edgepress.compress.quantize.graph import op_name


class Attention(nn.Module):
    """Layers of self-attention under one mask: none but a causal one, or what is given as floats."""

    def __init__(self, layers: int, causal: bool) -> None:
        super().__init__()
        self.layers, self.causal = nn.ModuleList(nn.Linear(8, 24) for _ in range(layers)), causal

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """(batch, 6, 8) and (batch, 6), True for tokens -> (batch, 6, 8)."""
        mask = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, float("-inf"))[:, None]
        mask = mask + torch.full((6, 6), float("-inf")).triu(1)
        for layer in self.layers:
            query, key, value = layer(x).chunk(3, -1)
            given = {"is_causal": True} if self.causal else {"attn_mask": mask}
            x = x + F.scaled_dot_product_attention(query, key, value, **given)
        return x


def exported(layers: int, causal: bool) -> tuple[torch.export.ExportedProgram, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, inputs = Attention(layers, causal).eval(), (torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool))
    axes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    return torch.export.export(model, tuple(item[:2] for item in inputs), dynamic_shapes=axes), model, inputs


def test_a_row_that_a_float_mask_hides_whole_is_finite() -> None:
    """Padding on the left, under a causal mask: PyTorch answers 0 there, softmax of -inf alone NaN."""
    program, model, (x, visible) = exported(2, causal=False)
    visible[1:, :2] = False
    module = canonical_module(program)
    torch.testing.assert_close(module(x, visible)[:, 2:], model(x, visible)[:, 2:], atol=1e-5, rtol=1e-4)
    assert module(x, visible).isfinite().all()
    assert calibrate(program, [(x, visible)]).samples == 4
    assert [op_name(node) for node in module.graph.nodes].count("clamp_min") == 1, "layers share the mask"


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_share_one_causal_mask(layers: int) -> None:
    program, model, inputs = exported(layers, causal=True)
    module = canonical_module(program)
    assert [tuple(tensor.shape) for tensor in module.buffers()].count((6, 6)) == 1
    torch.testing.assert_close(module(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)
