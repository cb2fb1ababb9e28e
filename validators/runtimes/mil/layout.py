"""Ops that rearrange values (iOS15/16/17.tensor_transformation, iOS15.tensor_operation): nothing is computed or rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints, tensor
from edgepress.validators.runtimes.mil.windows import padded


@mil_op("reshape", exact=True)
def reshape(x: Any, shape: Any) -> Tensor:
    """New shape; -1 is inferred, 0 takes the dimension of `x` at the same place counted from the right (1 beyond it)."""
    value, wanted = tensor(x), ints(shape)
    offset = value.ndim - len(wanted)
    sizes = [size if size else (value.shape[i + offset] if i + offset >= 0 else 1) for i, size in enumerate(wanted)]
    return value.reshape(sizes)


@mil_op("reshape_like", exact=True)
def reshape_like(x: Tensor, ref_tensors: Sequence[Tensor], begins: Any, ends: Any, end_masks: Any) -> Tensor:
    """Reshape to the concatenation of `ref_tensors[i].shape[begins[i]:ends[i]]`."""
    sizes: list[int] = []
    for reference, begin, end, masked in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += reference.shape[int(begin) : None if masked else int(end)]
    return x.reshape(sizes)


@mil_op("transpose", exact=True)
def transpose(x: Tensor, perm: Any) -> Tensor:
    """Permute the dimensions."""
    return x.permute(ints(perm))


@mil_op("expand_dims", exact=True)
def expand_dims(x: Any, axes: Any) -> Tensor:
    """Insert dimensions of size 1 at these places of the result."""
    value, places = tensor(x), ints(axes)
    rank = value.ndim + len(places)
    for axis in sorted(axis % rank for axis in places):
        value = value.unsqueeze(axis)
    return value


@mil_op("squeeze", exact=True)
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Remove dimensions of size 1: all, or those of `axes` (larger ones are left, as in torch)."""
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(ints(axes)))


@mil_op("flatten2d", exact=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Two dimensions: the product before `axis` and the product from it on."""
    place = axis if axis >= 0 else axis + x.ndim
    return x.reshape(math.prod(x.shape[:place]), -1)


@mil_op("concat", exact=True)
def concat(values: Sequence[Any], axis: int, interleave: bool = False) -> Tensor:
    """Join along a dimension; `interleave` takes one slice of each in turn."""
    parts = [tensor(value) for value in values]
    if interleave:
        place = int(axis) % parts[0].ndim
        return torch.stack(parts, place + 1).flatten(place, place + 1)
    return torch.cat([part.reshape(1) if part.ndim == 0 else part for part in parts], int(axis))


@mil_op("stack", exact=True)
def stack(values: Sequence[Any], axis: int) -> Tensor:
    """Join along a new dimension."""
    return torch.stack([tensor(value) for value in values], int(axis))


@mil_op("split", exact=True)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Any = None) -> list[Tensor]:
    """Cut along a dimension into equal parts, or into parts of the given sizes."""
    place = int(axis)
    sizes = ints(split_sizes) if split_sizes is not None else [x.shape[place] // int(num_splits or 1)] * int(num_splits or 1)
    return list(torch.split(x, sizes, place))


@mil_op("tile", exact=True)
def tile(x: Any, reps: Any) -> Tensor:
    """Repeat along every dimension."""
    return tensor(x).repeat(ints(reps))


@mil_op("reverse", exact=True)
def reverse(x: Tensor, axes: Any = None) -> Tensor:
    """Flip along `axes`, all when absent."""
    return torch.flip(x, ints(axes) if axes is not None else list(range(x.ndim)))


@mil_op("reverse_sequence", exact=True)
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Flip the first `lengths[i]` elements of each entry of `batch_axis` along `seq_axis`."""
    places = torch.arange(x.shape[seq_axis]).reshape([-1 if i == seq_axis % x.ndim else 1 for i in range(x.ndim)])
    limit = lengths.reshape([-1 if i == batch_axis % x.ndim else 1 for i in range(x.ndim)]).long()
    source = torch.where(places < limit, limit - 1 - places, places)
    return torch.gather(x, int(seq_axis), source.expand(x.shape))


@mil_op("pixel_shuffle", exact=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(n, C f^2, H, W) -> (n, C, H f, W f), as torch does it."""
    return F.pixel_shuffle(x, int(upscale_factor))


@mil_op("pixel_unshuffle", exact=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """(n, C, H f, W f) -> (n, C f^2, H, W), as torch does it."""
    return F.pixel_unshuffle(x, int(downscale_factor))


@mil_op("depth_to_space", exact=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """(n, C b^2, H, W) -> (n, C, H b, W b), the block index slowest in the channels (TensorFlow's order)."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@mil_op("space_to_depth", exact=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """(n, C, H b, W b) -> (n, C b^2, H, W), the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@mil_op("space_to_batch", exact=True)
def space_to_batch(x: Tensor, block_shape: Any, paddings: Any) -> Tensor:
    """Pad, cut the image into blocks and move the place inside the block to the batch (TensorFlow's order)."""
    (bh, bw), pads = ints(block_shape), ints(paddings)
    x = padded(x, [(pads[0], pads[1]), (pads[2], pads[3])])
    n, c, h, w = x.shape
    return x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


@mil_op("batch_to_space", exact=True)
def batch_to_space(x: Tensor, block_shape: Any, crops: Any) -> Tensor:
    """The inverse of `space_to_batch`, cropping what it padded."""
    (bh, bw), cut = ints(block_shape), ints(crops)
    n, c, h, w = x.shape
    n //= bh * bw
    y = x.reshape(bh, bw, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * bh, w * bw)
    return y[:, :, cut[0] : h * bh - cut[1], cut[2] : w * bw - cut[3]]


@mil_op("sliding_windows", exact=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Every window of `size` along `axis`; the window's own dimension follows `axis`."""
    place = int(axis) % x.ndim
    return x.unfold(place, int(size), int(stride)).movedim(-1, place + 1)
