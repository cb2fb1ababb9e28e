"""The user's training data for training: read as calibration reads it, without the samples that judge between models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgepress.compress.project.collect import Shares, draw
from edgepress.compress.project.dataset import length, open_dataset, read_sample
from edgepress.targets.errors import ProjectError

#: At most this share of the training data is held out; small data sets are needed for training.
HELD_OUT = 0.2


class TrainingSamples(Dataset[tuple[tuple[Tensor, ...], Tensor]]):  # type: ignore[misc]
    """Some rows of the user's dataset as tensors, in the dtypes the model takes.

    Args:
        spec: `module:callable`.
        root: the user's folder.
        casts: dtype per input, or None; empty for no override.

    Raises:
        ProjectError: the dataset cannot be used, or has no length.
    """

    def __init__(self, spec: str, root: Path, casts: Sequence[str | None] = ()) -> None:
        self._spec, self._root, self._casts = spec, root, list(casts)
        self._data: Any = open_dataset(spec, root)
        total = length(spec, self._data, root)
        if total is None:
            raise ProjectError(
                f"{spec!r} returned an IterableDataset", "training needs samples by number", "Give it __getitem__ and __len__."
            )
        self.rows = np.arange(total)

    def without(self, rows: np.ndarray) -> None:
        """Leave out these rows of the dataset."""
        self.rows = np.setdiff1d(self.rows, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], Tensor]:
        sample = read_sample(self._spec, self._data, self._root, int(self.rows[index]), self._casts)
        return tuple(torch.from_numpy(np.array(value)) for value in sample.inputs), torch.from_numpy(np.array(sample.label))


def held_out(total: int, shares: Shares) -> np.ndarray:
    """Positions in the selection share that are kept out of training, and judge between its epochs.

    Args:
        total: samples of the training data.
        shares: as the data step drew them.

    Returns:
        int64, ascending: all of the share, or as much of it as `HELD_OUT` of the data.
    """
    return np.arange(min(len(draw(total, shares)["selection"]), max(1, int(total * HELD_OUT))))
