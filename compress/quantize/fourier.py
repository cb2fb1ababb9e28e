"""Fourier transforms as products with constant matrices and as convolutions, on real tensors.

X[k] = sum_j x[j] exp(-2 pi i j k / n) (Oppenheim & Schafer, "Discrete-Time Signal Processing", section 8.5) is a product with a matrix of
cosines and one of sines. That is n / log2(n) times the arithmetic of a fast transform, in the kernel that every runtime has and tunes
best; of the five runtimes only one has a transform that gives right answers in every dimension. Short-time transforms are convolutions
whose kernels are those rows times the window, their inverse a transposed convolution over the sum of the squared windows (Griffin & Lim
1984, "Signal Estimation from Modified Short-Time Fourier Transform", equation 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def product(size: int, reads_complex: bool, writes_complex: bool, forward: bool, onesided: bool, scale: float) -> Tensor:
    """The matrix that transforms signals of `size` samples, which stand on its left.

    Args:
        size: of the signal in time, n.
        reads_complex: False for signals that are real.
        writes_complex: False for the inverse whose result is known to be real, which reads n // 2 + 1 frequencies.
        forward: the sign of the exponent is negative.
        onesided: frequencies 0 to n // 2 alone, of a real signal.
        scale: factor of all results.

    Returns:
        float32 (inputs, outputs): rows of real parts, then of imaginary ones where it reads a complex tensor; columns alike.
    """
    kept = size // 2 + 1 if onesided or not writes_complex else size
    rows, columns = (size, kept) if writes_complex else (kept, size)
    turns = torch.arange(rows)[:, None] * torch.arange(columns) % size  # exact: a large product has no digits left as a float
    angles = turns.double() * (2 * math.pi / size)
    cosines, sines = angles.cos() * scale, angles.sin() * scale * (-1 if forward else 1)
    if not writes_complex:  # frequencies that are left out are the conjugates of those that are not
        twice = torch.full((rows, 1), 2.0, dtype=torch.float64)
        twice[0] = 1
        if size % 2 == 0:
            twice[-1] = 1
        parts = [[cosines * twice], [-sines * twice]]
    elif reads_complex:
        parts = [[cosines, sines], [-sines, cosines]]
    else:
        parts = [[cosines, sines]]
    return torch.cat([torch.cat(row, 1) for row in parts]).float().contiguous()


def factor(sizes: Sequence[int], normalization: int) -> float:
    """What results are multiplied by: 1, 1 / sqrt(n) or 1 / n for `normalization` 0, 1, 2, where n counts the samples of all dimensions."""
    count = math.prod(sizes)
    return {0: 1.0, 1: 1 / math.sqrt(count), 2: 1 / count}[normalization]


def short_time_kernels(window: Tensor, size: int, onesided: bool, normalized: bool) -> tuple[int, Tensor]:
    """Kernels of the convolution that is a short-time transform.

    Args:
        window: (at most size,); a shorter one stands in the middle.
        size: samples of a transform.
        onesided: frequencies 0 to size // 2 alone.
        normalized: divide by sqrt(size).

    Returns:
        How many zeros the window begins with, and float32 (2 * frequencies, 1, taps), those of the real parts first; the taps lie where
        the window is not zero, one at least.
    """
    whole = centred(window, size)
    (heard,) = whole.nonzero(as_tuple=True)
    first, last = (int(heard[0]), int(heard[-1]) + 1) if len(heard) else (0, 1)
    matrix = product(size, False, True, True, onesided, 1 / math.sqrt(size) if normalized else 1.0)
    return first, (matrix * whole[:, None])[first:last].t()[:, None].contiguous()


def inverse_kernels(window: Tensor, size: int, onesided: bool, normalized: bool) -> Tensor:
    """Kernels of the transposed convolution that is the inverse short-time transform, but for the sum of the squared windows.

    Returns:
        float32 (2 * frequencies, 1, size).
    """
    scale = (math.sqrt(size) if normalized else 1.0) / size
    matrix = product(size, True, False, False, True, scale) if onesided else product(size, True, True, False, False, scale)[:, :size]
    return (matrix * centred(window, size))[:, None].contiguous()


def centred(window: Tensor, size: int) -> Tensor:
    """The window with zeros on both sides, as torch.stft puts them."""
    before = (size - len(window)) // 2
    return torch.nn.functional.pad(window, (before, size - len(window) - before))
