"""Resizing and cropping of images (iOS15/16/17.image_resizing): sampling positions first, then interpolation along each axis."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op
from edgepress.validators.runtimes.mil.tensors import ints


def positions(size: int, count: int, mode: str) -> Tensor:
    """Where an axis of `size` pixels is sampled for `count` outputs (iOS15 `resize_bilinear`, notes on `sampling_mode`)."""
    steps = torch.arange(count, dtype=torch.float64)
    if mode == "DEFAULT":
        grid = steps * (size / count)
    elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        centred = mode == "ALIGN_CORNERS" and count == 1
        grid = torch.full_like(steps, (size - 1) / 2) if centred else steps * ((size - 1) / max(1, count - 1))
    elif mode == "UNALIGN_CORNERS":
        grid = (steps + 0.5) * (size / count) - 0.5
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        grid = 0.5 * delta + steps * delta
    else:
        raise ValueError(f"unknown sampling_mode {mode!r}")
    return grid.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, grid: Tensor) -> Tensor:
    low = grid.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (grid - low).to(torch.float32).reshape(shape)
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    rows = _linear(x, x.ndim - 2, positions(x.shape[-2], height, mode))
    return _linear(rows, x.ndim - 1, positions(x.shape[-1], width, mode))


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Output i takes input floor(i * size / count), as torch's `nearest`."""
    rows = x.index_select(x.ndim - 2, torch.arange(height) * x.shape[-2] // height)
    return rows.index_select(x.ndim - 1, torch.arange(width) * x.shape[-1] // width)


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(height * x.shape[-2]), math.floor(width * x.shape[-1])


@mil_op("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """Scale the last two dimensions, nearest neighbour."""
    return _nearest(x, *_scaled(x, scale_factor_height, scale_factor_width))


@mil_op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Scale the last two dimensions, bilinear; the ratio is that of the sizes (torch's `recompute_scale_factor=True`)."""
    centres = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else ("UNALIGN_CORNERS" if centres else "DEFAULT")
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


@mil_op("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Bring the last two dimensions to these sizes, nearest neighbour."""
    return _nearest(x, int(target_size_height), int(target_size_width))


@mil_op("resize_bilinear")
def resize_bilinear(x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT") -> Tensor:
    """Bring the last two dimensions to these sizes, bilinear."""
    return _bilinear(x, int(target_size_height), int(target_size_width), sampling_mode)


@mil_op("resize")
def resize(x: Tensor, shape: Any, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT") -> Tensor:
    """Bring the last `resized_dims` dimensions to the last entries of `shape` (0 keeps the size)."""
    count = int(resized_dims)
    for offset, wanted in enumerate(ints(shape)[-count:]):
        axis = x.ndim - count + offset
        size = wanted or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = _linear(x, axis, positions(x.shape[axis], size, sampling_mode))
        elif sampling_mode == "DEFAULT":
            x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
        else:  # how ties are rounded in these modes is not documented
            raise ValueError(f"resize NEAREST_NEIGHBOR with sampling_mode {sampling_mode!r}")
    return x


@mil_op("crop", exact=True)
def crop(x: Tensor, crop_height: Any, crop_width: Any) -> Tensor:
    """Cut (before, after) rows and columns off the last two dimensions."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@mil_op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Values of images (n, c, h, w) at places (n, height, width, 2), columns before rows, from -1 to 1."""
    if coordinates_mode != "normalized_minus_one_to_one":
        raise ValueError(f"resample with coordinates_mode {coordinates_mode!r}")
    if padding_mode in ("reflection", "symmetric") and align_corners != (padding_mode == "reflection"):
        raise ValueError(f"resample with padding_mode {padding_mode!r} and align_corners {align_corners}")
    outside = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}[padding_mode]
    shifted = F.grid_sample(x - padding_value, coordinates.to(x.dtype), sampling_mode, outside, bool(align_corners))
    return shifted + padding_value
