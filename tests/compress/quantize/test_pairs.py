import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from edgepress.compress.quantize import with_pairs_in_place
from edgepress.compress.quantize.pairs import rounded

from .nets import NETS, outputs_of, samples_of
from .test_render import RUNTIMES, quantizers
from .test_render import rendered as rendering


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_rounding_in_place_gives_the_same_bits_and_changes_no_rendering(name: str, runtime: str) -> None:
    module, inputs = rendering(name, runtime).module, samples_of(name, 16)
    quick, many = with_pairs_in_place(module), len(quantizers(module))
    wanted = outputs_of(module, inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(quick, inputs), wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(module, inputs), wanted, strict=True))
    assert len(quantizers(module)) == many > len(quantizers(quick))


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
    scale=st.floats(2**-30, 2**20),
    grid=st.sampled_from([(torch.int8, -128, 127), (torch.int8, -127, 127), (torch.uint8, 0, 255), (torch.int16, -32767, 32767)]),
    place=st.one_of(st.none(), st.floats(0, 1)),
)
@settings(max_examples=200, deadline=None)
def test_rounding_without_integers_is_rounding_to_integers_and_back(
    values: list[float], scale: float, grid: tuple[torch.dtype, int, int], place: float | None
) -> None:
    dtype, lowest, highest = grid
    zero_point = 0 if place is None else round(lowest + place * (highest - lowest))
    steps = torch.tensor(values) * scale  # as many near the grid as far outside of it
    for value in (torch.tensor(values), steps):
        arguments = (scale, zero_point, lowest, highest, dtype)
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(value, *arguments)
        back = torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *arguments)
        found = rounded(value.clone(), *arguments[:-1])
        assert torch.equal(found, back)
        assert torch.equal(torch.signbit(found), torch.signbit(back))


def test_integers_that_something_else_reads_stay_integers() -> None:
    class Reads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 3, -128, 127, torch.int8)
            return integers, torch.ops.quantized_decomposed.dequantize_per_tensor(integers, 0.1, 3, -128, 127, torch.int8)

    module = torch.export.export(Reads(), (torch.randn(2, 3),)).module()
    assert isinstance(module, GraphModule)
    assert len(quantizers(with_pairs_in_place(module))) == 1
