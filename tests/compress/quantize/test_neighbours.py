"""Sums, products and maxima of six dimensions become those of at most five, and compute the same."""

from __future__ import annotations

from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .test_windows import most_dimensions

SHAPE = (2, 4, 3, 2, 4)


class Added(nn.Module):
    """(n, 8, 6, 4) as (n, 2, 4, 3, 2, 4), with something added that repeats along some dimensions, along the batch too."""

    def __init__(self, repeated: tuple[bool, ...], samples: bool) -> None:
        super().__init__()
        self.shape = [1 if alone else size for alone, size in zip(repeated, SHAPE, strict=True)]
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)[:, : prod(self.shape)]
        other = rows.reshape(-1, *self.shape) if self.samples else rows[0].reshape(self.shape)
        return (x.view(-1, *SHAPE) * other + other).flatten(2) * 2


class Largest(nn.Module):
    """The largest over some dimensions but the batch, and the smallest."""

    def __init__(self, dims: list[int], keep: bool) -> None:
        super().__init__()
        self.dims, self.keep = dims, keep

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, *SHAPE)
        return (x.amax(self.dims, self.keep) * x.amin([dim - 6 for dim in self.dims], keepdim=self.keep)).reshape(x.shape[0], -1)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.booleans()] * 5), st.booleans())
def test_what_repeats_along_any_dimensions(repeated: tuple[bool, ...], samples: bool) -> None:
    groups = 1 + len([place for place in range(5) if place == 0 or repeated[place] != repeated[place - 1]])
    assert most_dimensions(Added(repeated, samples)) <= max(5, groups)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 5), min_size=1), st.booleans())
def test_what_is_taken_over_any_dimensions(dims: set[int], keep: bool) -> None:
    if keep:  # the result has six dimensions, and so has what reads it
        assert most_dimensions(Largest(sorted(dims), keep)) <= 6
    elif dims not in ({1, 3, 5}, {2, 4}):  # these are six groups
        assert most_dimensions(Largest(sorted(dims), keep)) <= 5


def test_relative_positions_of_rows_and_columns() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x.reshape(-1, 2, 4, 3, 2, 4)
            return (scores + scores.sum(-1)[..., None] + scores.sum(-2)[..., None, :]).reshape(-1, 2, 12, 8).softmax(-1)

    assert most_dimensions(Positions()) <= 5
