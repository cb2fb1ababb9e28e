"""Samples and outputs as .npy files, one folder per share of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepress.targets.nouns import Signature

if TYPE_CHECKING:
    from torch import Tensor


def load_inputs(folder: Path, signature: Signature, count: int | None = None) -> dict[str, np.ndarray]:
    """The first `count` samples (all by default) of a share, by input name; memory-mapped."""
    return {spec.name: np.load(folder / f"input_{i}.npy", mmap_mode="r")[:count] for i, spec in enumerate(signature.inputs)}


def load_outputs(folder: Path, signature: Signature, count: int | None = None) -> dict[str, np.ndarray]:
    """The outputs kept by `save_outputs`, by name."""
    return {spec.name: np.load(folder / f"output_{i}.npy", mmap_mode="r")[:count] for i, spec in enumerate(signature.outputs)}


def save_outputs(folder: Path, outputs: Sequence[np.ndarray]) -> None:
    """Write outputs in positional order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, value in enumerate(outputs):
        np.save(folder / f"output_{i}.npy", np.ascontiguousarray(value), allow_pickle=False)


def batches(inputs: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Cut samples into batches of `size`, the last one shorter."""
    total = len(next(iter(inputs.values())))
    return [{name: value[start : start + size] for name, value in inputs.items()} for start in range(0, total, size)]


def tensors(pieces: Iterable[Mapping[str, np.ndarray]], signature: Signature) -> Iterator[tuple[Tensor, ...]]:
    """Batches as PyTorch takes them, by the place of inputs."""
    import torch

    for piece in pieces:
        yield tuple(torch.from_numpy(piece[spec.name].copy()) for spec in signature.inputs)
