"""Where in a net the damage of quantization starts, layer by layer. Material of `edgepress explain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepress.validators.parity import decibels

Array = NDArray[Any]

#: Noise this low is no damage: `LayerError.lost_db` counts from here.
CLEAN_DB = 60.0


@dataclass(frozen=True)
class LayerError:
    """One intermediate tensor of two models.

    Attributes:
        name: in the reference.
        matched: in the candidate.
        shape: of the tensor.
        sqnr_db: signal to noise; low is bad.
        lost_db: how much lower than the lowest of the layers before it (at most `CLEAN_DB`): where this is large, the damage starts.
        max_abs_error: largest difference.
    """

    name: str
    matched: str
    shape: tuple[int, ...]
    sqnr_db: float
    lost_db: float
    max_abs_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def compare_layers(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> tuple[LayerError, ...]:
    """SQNR of every layer that both models show, in the reference's order.

    Layers match by name and shape. What is left over matches by shape alone, first to first, where both sides have the same
    number of left-over tensors of that shape: converters rename, and a wrong match would look like damage.

    Args:
        reference, candidate: name -> tensor on the same inputs. Integer tensors are left out (their scale is not known here).
            A tensor that is NaN in the candidate counts as the worst there is.
    """
    first = {name: value for name, value in reference.items() if _float(value)}
    second = {name: value for name, value in candidate.items() if _float(value)}
    pairs = {name: name for name, value in first.items() if name in second and second[name].shape == value.shape}
    left = [name for name in first if name not in pairs]
    free = [name for name in second if name not in pairs]
    for shape in {first[name].shape for name in left}:
        ours = [name for name in left if first[name].shape == shape]
        theirs = [name for name in free if second[name].shape == shape]
        if len(ours) == len(theirs):
            pairs |= dict(zip(ours, theirs, strict=True))
    errors: list[LayerError] = []
    for name in first:
        if name in pairs:
            errors.append(_layer(name, pairs[name], first[name], second[pairs[name]], errors))
    return tuple(errors)


def worst_layers(errors: Sequence[LayerError], count: int = 10) -> tuple[LayerError, ...]:
    """The layers at which most is lost, worst first."""
    return tuple(sorted(errors, key=lambda error: (-error.lost_db, error.sqnr_db))[:count])


def _layer(name: str, matched: str, first: Array, second: Array, before: Sequence[LayerError]) -> LayerError:
    one, two = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(two)
    broken = bool((np.isfinite(one) & ~finite).any())
    gap = np.where(finite, two, 0.0) - np.where(finite, one, 0.0)
    noise = decibels(0.0, 1.0) if broken else decibels(float(np.sum(np.where(finite, one, 0.0) ** 2)), float(np.sum(gap**2)))
    best = min((error.sqnr_db for error in before), default=CLEAN_DB)
    largest = float(np.finfo(np.float64).max) if broken else float(np.abs(gap).max(initial=0.0))
    return LayerError(name, matched, tuple(first.shape), noise, max(min(best, CLEAN_DB) - noise, 0.0), largest)


def _float(value: Array) -> bool:
    return bool(np.issubdtype(np.asarray(value).dtype, np.floating))
