"""Teacher outputs computed once over the training data and read back by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgepress.compress.distill.teacher import Lesson, Teacher
from edgepress.compress.training.devices import training_device
from edgepress.targets.errors import TrainingError
from edgepress.targets.progress import progress


class Rows(Protocol):
    """A map-style dataset of (input or tuple of inputs, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class CachedTeacher:
    """Answers from files `output_<i>.npy` with one row per sample; the inputs are not looked at, so they must not be augmented.

    Args:
        folder: as `cache_outputs` filled it; files are memory-mapped.

    Raises:
        TrainingError: there are no such files, or their numbers of rows differ.
    """

    def __init__(self, folder: Path) -> None:
        paths = [folder / f"output_{i}.npy" for i in range(len(list(folder.glob("output_*.npy"))))]
        if not paths:
            raise TrainingError(f"{folder} holds no teacher outputs", "there is no output_0.npy", "Compute them again.")
        try:
            self._arrays = [np.load(path, mmap_mode="r") for path in paths]
        except (OSError, ValueError) as error:
            raise TrainingError(f"the teacher outputs in {folder} cannot be read", str(error), "Compute them again.") from error
        self.rows = len(self._arrays[0])
        if any(len(array) != self.rows for array in self._arrays):
            raise TrainingError(f"the teacher outputs in {folder} differ in their number of rows", "", "Compute them again.")

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Lesson:
        """See `Teacher`; float32 outputs.

        Raises:
            TrainingError: a row beyond the last one.
        """
        rows = index.cpu().numpy()
        if len(rows) and (rows.max() >= self.rows or rows.min() < 0):
            raise TrainingError(
                f"there are teacher outputs for {self.rows} samples, row {rows.max()} was asked for",
                "they were computed for other data",
                "Compute them again.",
            )
        device = inputs[0].device if inputs else index.device
        return Lesson(tuple(torch.from_numpy(array[rows].astype(np.float32)).to(device) for array in self._arrays))


def cache_outputs(teacher: Teacher, data: Rows, folder: Path, batch: int = 128, dtype: str = "float16") -> CachedTeacher:
    """Compute a teacher's outputs for every sample once.

    Args:
        teacher: its features are not kept.
        data: the training data, without random augmentation.
        folder: is made; earlier outputs in it are replaced, each file at once.
        batch: samples per call.
        dtype: "float16" (relative error 5e-4, overflows above 65504) or "float32".

    Raises:
        TrainingError: another dtype, no samples, an output that is not finite or too large for `dtype`, or no space left.
    """
    if dtype not in ("float16", "float32"):
        raise TrainingError(f"teacher outputs cannot be kept as {dtype!r}", "", "Use float16 or float32.")
    if len(data) == 0:
        raise TrainingError("the training data has no samples", "", "Check your data code.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fill(teacher, data, folder, batch, dtype)
    except OSError as error:
        raise TrainingError(f"teacher outputs cannot be written to {folder}", str(error), "Free some space or choose float16.") from error
    return CachedTeacher(folder)


def _fill(teacher: Teacher, data: Rows, folder: Path, batch: int, dtype: str) -> None:
    arrays: list[np.ndarray] = []
    device = training_device()
    for start in range(0, len(data), batch):
        progress("computing the teacher's outputs", start, len(data))
        rows = range(start, min(start + batch, len(data)))
        for i, output in enumerate(teacher(_stack(data, rows, device), torch.tensor(rows)).outputs):
            with np.errstate(over="ignore"):
                value = output.float().cpu().numpy().astype(dtype)
            if not np.isfinite(value).all():
                advice = "Keep them as float32." if dtype == "float16" and bool(output.isfinite().all()) else "Check the teacher."
                raise TrainingError(f"the teacher gives values in rows {rows.start} to {rows.stop - 1} that are no {dtype}", "", advice)
            if start == 0:
                path = folder / f"output_{i}.npy.new"
                arrays.append(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(data), *value.shape[1:])))
            arrays[i][rows.start : rows.stop] = value
    for stale in folder.glob("output_*.npy"):
        stale.unlink()
    for i, array in enumerate(arrays):
        array.flush()  # type: ignore[attr-defined]
        (folder / f"output_{i}.npy.new").replace(folder / f"output_{i}.npy")


def _stack(data: Rows, rows: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    inputs = [item if isinstance(item, tuple | list) else (item,) for item, _ in (data[row] for row in rows)]
    return tuple(torch.stack([torch.as_tensor(value) for value in column]).to(device) for column in zip(*inputs, strict=True))


def may_cache(augment: Sequence[str], layers: Sequence[str]) -> bool:
    """Are a teacher's outputs the same in every epoch? Not of augmented inputs; and features are too large to keep.

    Args:
        augment: of the training's settings.
        layers: of the teacher that are copied.
    """
    return not augment and not layers
