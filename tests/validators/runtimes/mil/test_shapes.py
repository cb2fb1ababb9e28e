from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb

from tests.validators.runtimes.mil.one_op import check, integers, normal

X = normal(2, 3, 4, 6)
T = torch.from_numpy(X)
S = normal(1, 8, 4, 6)
U = torch.from_numpy(S)

CASES: dict[str, tuple[Callable[..., Any], Any]] = {
    "reshape": (lambda x: mb.reshape(x=x, shape=[2, -1, 6]), T.reshape(2, -1, 6)),
    "reshape with zeros": (lambda x: mb.reshape(x=x, shape=[-1, 0, 0]), T.reshape(6, 4, 6)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]), T.permute(0, 2, 3, 1)),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[1]), T.unsqueeze(1)),
    "expand_dims from the end": (lambda x: mb.expand_dims(x=x, axes=[-1]), T.unsqueeze(-1)),
    "flatten2d": (lambda x: mb.flatten2d(x=x, axis=2), T.reshape(6, 24)),
    "flatten2d from the end": (lambda x: mb.flatten2d(x=x, axis=-1), T.reshape(24, 6)),
    "concat": (lambda x: mb.concat(values=[x, x], axis=1), torch.cat([T, T], 1)),
    "concat interleaved": (
        lambda x: mb.concat(values=[x, mb.abs(x=x)], axis=1, interleave=True),
        torch.stack([T, T.abs()], 2).flatten(1, 2),
    ),
    "stack": (lambda x: mb.stack(values=[x, x], axis=1), torch.stack([T, T], 1)),
    "split equal": (lambda x: mb.split(x=x, num_splits=3, axis=1), list(T.chunk(3, 1))),
    "split sizes": (lambda x: mb.split(x=x, split_sizes=[1, 5], axis=-1), list(T.split([1, 5], -1))),
    "tile": (lambda x: mb.tile(x=x, reps=[1, 2, 1, 3]), T.repeat(1, 2, 1, 3)),
    "reverse": (lambda x: mb.reverse(x=x, axes=[1, -1]), T.flip(1, 3)),
    "reverse all": (lambda x: mb.reverse(x=x), T.flip(0, 1, 2, 3)),
    "sliding_windows": (lambda x: mb.sliding_windows(x=x, axis=3, size=3, stride=2), T.unfold(3, 3, 2)),
    "slice_by_index": (lambda x: mb.slice_by_index(x=x, begin=[0, 1, 1, -2], end=[2, 3, 3, 6]), T[:, 1:3, 1:3, -2:]),
    "slice_by_index masked": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, 1, 0, 1], end=[0, 0, 0, 0], stride=[1, 1, 1, 2], begin_mask=[True, False, True, False], end_mask=[True] * 4
        ),
        T[:, 1:, :, 1::2],
    ),
    "slice_by_index backwards": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 0, 3, 5], end=[2, 3, 0, 0], stride=[1, 1, -1, -2], end_mask=[False, False, False, True]),
        T.flip(2, 3)[:, :, :3, ::2],
    ),
    "slice_by_index squeezed": (
        lambda x: mb.slice_by_index(x=x, begin=[0, -1, 0, 2], end=[2, 0, 4, 0], squeeze_mask=[False, True, False, True]),
        T[:, -1, :, 2],
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[0, 1, 0, 2], size=[2, 2, -1, 3]), T[:, 1:3, :, 2:5]),
    "pad constant": (
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="constant", constant_val=np.float32(0.5)),
        F.pad(T, (0, 2, 1, 0), value=0.5),
    ),
    "pad reflect": (lambda x: mb.pad(x=x, pad=[1, 2, 3, 1], mode="reflect"), F.pad(T, (3, 1, 1, 2), mode="reflect")),
    "pad replicate": (lambda x: mb.pad(x=x, pad=[1, 2, 3, 1], mode="replicate"), F.pad(T, (3, 1, 1, 2), mode="replicate")),
    "band_part": (lambda x: mb.band_part(x=x, lower=1, upper=2), T.triu(-1).tril(2)),
    "band_part upper": (lambda x: mb.band_part(x=x, lower=0, upper=-1), T.triu()),
    "shape": (lambda x: mb.shape(x=x), torch.tensor([2, 3, 4, 6])),
    "cumsum": (lambda x: mb.cumsum(x=x, axis=2), T.cumsum(2)),
    "cumsum exclusive reversed": (lambda x: mb.cumsum(x=x, axis=3, exclusive=True, reverse=True), T.flip(3).cumsum(3).flip(3) - T),
    "topk": (lambda x: mb.topk(x=x, k=2, axis=-1), list(T.topk(2, -1))),
    "topk smallest": (lambda x: mb.topk(x=x, k=3, axis=2, ascending=True), list(T.topk(3, 2, largest=False))),
    "argsort": (lambda x: mb.argsort(x=x, axis=3, ascending=True), T.argsort(3)),
    "fill": (lambda x: mb.add(x=x, y=mb.fill(shape=[4, 6], value=np.float32(2))), T + 2),
    "fill_like": (lambda x: mb.fill_like(ref_tensor=x, value=np.float32(3)), torch.full_like(T, 3)),
    "range_1d": (lambda x: mb.add(x=x, y=mb.cast(x=mb.range_1d(start=1, end=13, step=2), dtype="fp32")), T + torch.arange(1, 13, 2)),
}
IMAGES: dict[str, tuple[Callable[..., Any], Any]] = {
    "squeeze": (lambda x: mb.squeeze(x=x, axes=[0]), U.squeeze(0)),
    "squeeze all": (lambda x: mb.squeeze(x=x), U.squeeze()),
    "pixel_shuffle": (lambda x: mb.pixel_shuffle(x=x, upscale_factor=2), F.pixel_shuffle(U, 2)),
    "pixel_unshuffle": (lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), F.pixel_unshuffle(U, 2)),
    "crop": (lambda x: mb.crop(x=x, crop_height=[1, 1], crop_width=[2, 0]), U[:, :, 1:3, 2:]),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        F.interpolate(U, scale_factor=(2, 3)),
    ),
    "resize_nearest_neighbor": (
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=7, target_size_width=5),
        F.interpolate(U, (7, 5)),
    ),
    "upsample_bilinear": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False),
        F.interpolate(U, scale_factor=(2, 3), mode="bilinear"),
    ),
    "upsample_bilinear corners": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
        F.interpolate(U, scale_factor=(2, 3), mode="bilinear", align_corners=True),
    ),
    "resize_bilinear": (
        lambda x: mb.resize_bilinear(x=x, target_size_height=7, target_size_width=9, sampling_mode="UNALIGN_CORNERS"),
        F.interpolate(U, (7, 9), mode="bilinear"),
    ),
    "resize_bilinear corners": (
        lambda x: mb.resize_bilinear(x=x, target_size_height=7, target_size_width=9, sampling_mode="STRICT_ALIGN_CORNERS"),
        F.interpolate(U, (7, 9), mode="bilinear", align_corners=True),
    ),
    "resize": (
        lambda x: mb.resize(x=x, shape=[7, 0], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
        F.interpolate(U, (7, 6), mode="bilinear"),
    ),
    "resize nearest": (
        lambda x: mb.resize(x=x, shape=[9, 7], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        F.interpolate(U, (9, 7)),
    ),
    "space then depth": (lambda x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=2), block_size=2), U),
    "space then batch": (
        lambda x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[0, 0], [3, 3]]), block_shape=[2, 3], crops=[[0, 0], [3, 3]]
        ),
        U,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rearrangement(name: str) -> None:
    build, expected = CASES[name]
    check(build, expected, X)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    build, expected = IMAGES[name]
    check(build, expected, S)


@pytest.mark.parametrize(("outside", "corners"), [("constant", False), ("border", True), ("symmetric", False), ("reflection", True)])
def test_resample_continues_the_image_on_all_sides(outside: str, corners: bool) -> None:
    places = np.random.default_rng(3).uniform(-1.4, 1.4, (1, 5, 7, 2)).astype(np.float32)
    margin = 3
    how = {"constant": {"constant_values": 0.5}, "border": {"mode": "edge"}, "reflection": {"mode": "reflect"}}
    wide = np.pad(S, [(0, 0), (0, 0), (margin, margin), (margin, margin)], **how.get(outside, {"mode": outside}))
    sizes = np.array([6, 4])
    pixels = ((places + 1) / 2 * (sizes - 1) if corners else ((places + 1) * sizes - 1) / 2) + margin
    low = np.floor(pixels).astype(int)
    (right, down), (column, row) = (np.moveaxis(each[0], -1, 0) for each in (pixels - low, low))
    expected = sum(
        wide[:, :, row + i, column + j] * (down if i else 1 - down) * (right if j else 1 - right) for i in (0, 1) for j in (0, 1)
    )
    settings = {"sampling_mode": "bilinear", "padding_mode": outside, "padding_value": np.float32(0.5), "align_corners": corners}
    check(
        lambda x, at: mb.resample(x=x, coordinates=at, coordinates_mode="normalized_minus_one_to_one", **settings),
        torch.from_numpy(expected.astype(np.float32)),
        S,
        places,
    )


def test_reshape_like_takes_sizes_from_other_tensors() -> None:
    def build(x: Any) -> Any:
        return mb.reshape_like(x=x, ref_tensors=(x, mb.reshape(x=x, shape=[2, 72])), begins=(0, 1), ends=(1, 0), end_masks=(False, True))

    check(build, T.reshape(2, 72), X)


def test_space_to_depth_puts_the_block_first_in_the_channels() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
    blocks = [torch.from_numpy(x)[:, :, i::2, j::2] for i in range(2) for j in range(2)]
    check(lambda v: mb.space_to_depth(x=v, block_size=2), torch.cat(blocks, 1), x)


def test_reverse_sequence_turns_the_first_elements_of_each_row() -> None:
    x = normal(3, 5)
    lengths = np.array([2, 5, 0], dtype=np.int32)
    expected = torch.stack([torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(torch.from_numpy(x), lengths, strict=True)])
    check(lambda v: mb.reverse_sequence(x=v, lengths=lengths, seq_axis=1, batch_axis=0), expected, x)


def test_slice_update_writes_into_a_copy() -> None:
    x, update = normal(3, 6), normal(2, 3)
    expected = torch.from_numpy(x).clone()
    expected[1:, ::2] = torch.from_numpy(update)
    check(lambda v, u: mb.slice_update(x=v, update=u, begin=[1, 0], end=[3, 6], stride=[1, 2]), expected, x, update)


@pytest.mark.parametrize(("axis", "batch_dims"), [(0, 0), (2, 0), (-1, 0), (1, 1), (2, 1)])
def test_gather(axis: int, batch_dims: int) -> None:
    x = normal(2, 5, 7)
    indices = integers(2 if axis == 0 else 5, 2, 3)
    source, index = torch.from_numpy(x), torch.from_numpy(indices).long()
    if batch_dims:
        expected = torch.stack([row.index_select(axis - 1, i) for row, i in zip(source, index, strict=True)])
    else:
        expected = torch.from_numpy(np.take(x, indices, axis))
    check(lambda v, i: mb.gather(x=v, indices=i, axis=axis, batch_dims=batch_dims), expected, x, indices)


def test_gather_along_axis_and_nd() -> None:
    x, along, points = normal(3, 4), integers(4, 3, 2), integers(3, 5, 2)
    source = torch.from_numpy(x)
    check(lambda v, i: mb.gather_along_axis(x=v, indices=i, axis=1), source.gather(1, torch.from_numpy(along).long()), x, along)
    check(lambda v, i: mb.gather_nd(x=v, indices=i), source[points[:, 0], points[:, 1]], x, points)


def test_gather_nd_with_batch_dimensions() -> None:
    x, points = normal(2, 4, 5), integers(4, 2, 3, 1)
    expected = torch.stack([row[i[:, 0]] for row, i in zip(torch.from_numpy(x), points, strict=True)])
    check(lambda v, i: mb.gather_nd(x=v, indices=i, batch_dims=1), expected, x, points)


@pytest.mark.parametrize("mode", ["add", "sub", "mul", "div", "max", "min", "update"])
def test_scatter(mode: str) -> None:
    data, updates, indices = normal(4, 3), normal(2, 3, seed=5), np.array([3, 1], dtype=np.int32)
    rule = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum}
    met = rule.get(mode, lambda _, new: new)
    expected = torch.from_numpy(data).clone()
    expected[[3, 1]] = met(expected[[3, 1]], torch.from_numpy(updates))
    check(lambda d, i, u: mb.scatter(data=d, indices=i, updates=u, axis=0, mode=mode), expected, data, indices, updates)
    check(lambda d, i, u: mb.scatter_nd(data=d, indices=i, updates=u, mode=mode), expected, data, indices.reshape(2, 1), updates)


def test_scatter_along_axis() -> None:
    data, updates, indices = normal(3, 4), normal(3, 2), integers(4, 3, 2)
    expected = torch.from_numpy(data).scatter_add(1, torch.from_numpy(indices).long(), torch.from_numpy(updates))
    check(lambda d, i, u: mb.scatter_along_axis(data=d, indices=i, updates=u, axis=1, mode="add"), expected, data, indices, updates)


def test_one_hot_and_non_zero() -> None:
    index = integers(5, 6)
    expected = F.one_hot(torch.from_numpy(index).long(), 5) * 3.0 + 1.0
    check(lambda i: mb.one_hot(indices=i, one_hot_vector_size=5, on_value=np.float32(4), off_value=np.float32(1)), expected, index)
    x = np.array([[0, 1, 0], [2, 0, 3]], dtype=np.float32)
    check(lambda v: mb.non_zero(x=v), torch.nonzero(torch.from_numpy(x)), x)
