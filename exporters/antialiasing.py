"""Resizing that skips no pixels (`torch.nn.functional.interpolate` with `antialias=True`), written out in products.

Other runtimes have no operator for it, or take it for the one that interpolates between the nearest pixels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' kernel with a = -1/2 (1981, equation 15), which is 0 from a distance of 2 on."""
    near, far = distance.clamp(max=1), distance.clamp(1, 2)
    return (1.5 * near - 2.5) * near * near + 1 - (((far - 5) * far + 8) * far - 4) / 2


def _product(kernel: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A product of a matrix of constants with the rows of images (n, c, h, w), and one with their columns.

    The matrices stand on the left: on the right, schemes that find ranges at run time would round them.
    """

    def resized(x: torch.Tensor, size: Sequence[int] | None, align_corners: bool, *factors: Any) -> torch.Tensor:
        scales = factors[0] if factors and isinstance(factors[0], Sequence) else [*factors, None, None][:2]
        for dim, scale in zip((-2, -1), scales, strict=True):
            extent = x.shape[dim]
            count = int(extent * scale) if size is None else size[dim]
            step = 1 / scale if scale else extent / count
            if align_corners:
                step = (extent - 1) / (count - 1) if count > 1 else 0.0
            centres = (torch.arange(count, dtype=x.dtype) + 0.5) * step
            places = torch.arange(extent, dtype=x.dtype) + 0.5
            weights = kernel((places - centres[:, None]).abs() / max(step, 1.0))
            weights = weights / weights.sum(1, keepdim=True)
            x = weights @ x if dim == -2 else (weights @ x.mT).mT
        return x

    return resized


#: Operators that resize without skipping pixels -> what to compute in their place.
ANTIALIASED: Mapping[Any, Callable[..., torch.Tensor]] = {
    getattr(getattr(torch.ops.aten, f"_upsample_{name}2d_aa"), overload): _product(kernel)
    for name, kernel in (("bilinear", _triangle), ("bicubic", _cubic))
    for overload in ("default", "vec")
}
