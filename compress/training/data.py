"""Batches for the training loop, fast enough that it does not wait for them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from edgepress.compress.training.random import generators_kept, seed_everything, seed_for
from edgepress.targets.errors import TrainingError

#: Samples read twice to see whether the dataset draws its samples at random: one that changes a tenth of them is seen in 99.8 % of cases.
_PROBED = 32
#: Share of the free memory that decoded samples may take.
_MEMORY_SHARE = 0.25
#: Reading a batch in less than this is not worth a process of its own: handing it over costs as much.
_WORTH_A_WORKER_S = 0.005
#: Batches each worker keeps ready.
_AHEAD = 2
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Batch:
    """Samples of one process: `inputs` of shape (n, ...), `labels` (n, ...) or None, `index` int64 (n,), all on the CPU."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    index: Tensor


class Feed:
    """Reads a map-style dataset in an order that follows from (seed, epoch) alone.

    Samples of a dataset that returns the same ones every time are decoded once and kept in memory, up to a quarter of what is free. A
    dataset that draws its samples at
    random is seeded by (seed, epoch, row), so that they do not depend on which process reads them. Slow reading is done by worker
    processes.

    Args:
        data: items `(input, label)` or `((input, ...), label)` of tensors, arrays or numbers; the label may be None.
        batch: samples per batch over all processes.
        seed: of the order and of the dataset's own random numbers.
        world, rank: processes, and which of them this is: it gets every `world`-th sample of a batch.

    Raises:
        TrainingError: the data is empty, cannot be indexed, or its samples do not fit together.
    """

    def __init__(self, data: Dataset[Any], batch: int, seed: int, world: int = 1, rank: int = 0) -> None:
        self.size = _length(data)
        self.batch = min(batch, self.size) // world * world
        if self.batch == 0:
            raise TrainingError(
                f"a batch of {min(batch, self.size)} samples for {world} processes", "each needs one", "Use fewer processes."
            )
        self._data, self._seed, self._world, self._rank = data, seed, world, rank
        self._rows, self._seconds = self._open()

    @property
    def per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return self.size // self.batch

    def example(self, count: int = 2) -> Batch:
        """The first samples."""
        index = torch.arange(min(count, self.size))
        return self._batch(index, _unwrapped(_read(self._data, index.tolist(), None)))

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `first` on.

        Raises:
            TrainingError: a sample cannot be read, or differs from the others in shape.
        """
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed_for("order", self._seed, epoch)))
        count = self.per_epoch * self.batch
        mine = [part[self._rank :: self._world] for part in order[first * self.batch : count].split(self.batch)]
        missing = [index if self._rows is None else index[~self._rows.known[index]] for index in mine]
        loaded = iter(self._loader([rows.tolist() for rows in missing if len(rows)], epoch))
        for index, rows in zip(mine, missing, strict=True):
            found = _unwrapped(next(loaded)) if len(rows) else []
            if self._rows is not None:
                if found:
                    self._rows.put(rows, found)
                found = self._rows.take(index)
            yield self._batch(index, found)

    def _batch(self, index: Tensor, columns: Sequence[Tensor]) -> Batch:
        inputs, labels = tuple(columns[: self._inputs]), columns[self._inputs :]
        return Batch(inputs, labels[0] if labels else None, index)

    def _open(self) -> tuple[_Rows | None, float]:
        """The store of decoded rows, None where they change or are too many, and the seconds one row takes to read."""
        if type(self._data) is TensorDataset and len(self._data.tensors) > 1:
            columns = [_column(tensor, label=i == len(self._data.tensors) - 1) for i, tensor in enumerate(self._data.tensors)]
            self._inputs = len(columns) - 1
            return _Rows(columns, torch.ones(self.size, dtype=torch.bool)), 0.0
        indices = sorted({int(i) for i in np.linspace(0, self.size - 1, min(_PROBED, self.size))})
        with generators_kept():
            one = _unwrapped(_read(self._data, indices, ("probe", 0)))
            marks = [time.perf_counter()]
            two = []
            for index in indices:
                two.append(_unwrapped(_read(self._data, [index], ("probe", 1))))
                marks.append(time.perf_counter())
        seconds = float(np.median(np.diff(marks)))
        self._inputs = _input_count(self._data[indices[0]])
        self._sample_bytes = sum(column[0].numel() * column.element_size() for column in one)
        again = [torch.cat(column) for column in zip(*two, strict=True)]
        if not all(torch.equal(a, b) for a, b in zip(one, again, strict=True)):
            return None, seconds
        if self._sample_bytes * self.size > psutil.virtual_memory().available * _MEMORY_SHARE / self._world:
            return None, seconds
        rows = _Rows([column.new_empty((self.size, *column.shape[1:])) for column in one], torch.zeros(self.size, dtype=torch.bool))
        rows.put(torch.tensor(indices), one)
        return rows, seconds

    def _loader(self, batches: list[list[int]], epoch: int) -> Sequence[list[Tensor] | _Failure] | DataLoader[Any]:
        seeds = None if self._rows is not None else (self._seed, epoch)
        reader = _Reader(self._data, seeds, batches)
        workers = self._workers()
        return DataLoader(
            reader,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # leaves the global generator alone
        )

    def _workers(self) -> int:
        """How many processes read: none where reading is quick, or where batches could not be handed over."""
        share = self.batch // self._world
        if self._seconds * share < _WORTH_A_WORKER_S or "fork" not in multiprocessing.get_all_start_methods():
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, cores // self._world - 1)
        held = self._sample_bytes * share * (_AHEAD + 1) * workers
        return workers if _SHARED_MEMORY.is_dir() and held < shutil.disk_usage(_SHARED_MEMORY).free else 0


@dataclass(frozen=True)
class _Rows:
    """Decoded samples: one tensor (size, ...) per input and for the label, and which rows are there."""

    columns: list[Tensor]
    known: Tensor

    def put(self, rows: Tensor, values: Sequence[Tensor]) -> None:
        for column, value in zip(self.columns, values, strict=True):
            if value.shape[1:] != column.shape[1:] or value.dtype != column.dtype:
                raise _unlike(rows.tolist(), value[0], column[0])
            column[rows] = value
        self.known[rows] = True

    def take(self, rows: Tensor) -> list[Tensor]:
        return [column.index_select(0, rows) for column in self.columns]


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process, where raising it would turn it into the text of a traceback."""

    error: TrainingError


class _Reader(Dataset[Any]):  # type: ignore[misc]
    """Item i is the i-th batch, stacked."""

    def __init__(self, data: Dataset[Any], seeds: tuple[int | str, ...] | None, batches: list[list[int]]) -> None:
        self._data, self._seeds, self._batches = data, seeds, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[Tensor] | _Failure:
        return _read(self._data, self._batches[number], self._seeds)


def _read(data: Dataset[Any], indices: Sequence[int], seeds: tuple[int | str, ...] | None) -> list[Tensor] | _Failure:
    """Read and stack samples, each after seeding every generator where `seeds` are given."""
    samples: list[list[Tensor]] = []
    try:
        for index in indices:
            if seeds is not None:
                seed_everything(seed_for("sample", *seeds, index))
            samples.append(_tensors(index, data[index]))
            for value, like in zip(samples[-1], samples[0], strict=True):
                if value.shape != like.shape or value.dtype != like.dtype:
                    raise _unlike([index], value, like)
        return [torch.stack(column) for column in zip(*samples, strict=True)]
    except TrainingError as error:
        return _Failure(error)
    except Exception as error:  # the user's own __getitem__
        return _Failure(
            TrainingError(f"reading sample {indices[len(samples)]} failed", f"{type(error).__name__}: {error}", "Check the data code.")
        )


def _unwrapped(found: list[Tensor] | _Failure) -> list[Tensor]:
    if isinstance(found, _Failure):
        raise found.error
    return found


def _input_count(item: Any) -> int:
    return len(item[0]) if isinstance(item[0], tuple | list) else 1


def _tensors(index: int, item: Any) -> list[Tensor]:
    """One item as tensors: its inputs, and its label where it has one."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TrainingError(
            f"sample {index} is {type(item).__name__}", "an (input, label) pair is needed", "Return a label of None where there is none."
        )
    given, label = item
    inputs = [_column(value) for value in (given if isinstance(given, tuple | list) else (given,))]
    return inputs if label is None else [*inputs, _column(label, label=True)]


def _column(value: Any, label: bool = False) -> Tensor:
    """A tensor whose dtype a model takes: float64 becomes float32, and integer labels int64."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"a sample holds {type(value).__name__}", "tensors, arrays and numbers can be trained on", "Convert it."
        ) from error
    if tensor.dtype == torch.float64 or (label and tensor.is_floating_point()):
        return tensor.float()
    return tensor.long() if label else tensor


def _unlike(rows: list[int], value: Tensor, like: Tensor) -> TrainingError:
    where = f"sample {rows[0]}" if len(rows) == 1 else f"a sample among {rows[0]} to {rows[-1]}"
    return TrainingError(
        f"{where} has a {value.dtype} tensor of shape {tuple(value.shape)}",
        f"others have {like.dtype} of {tuple(like.shape)}",
        "Resize or pad every sample to one shape.",
    )


def _length(data: Dataset[Any]) -> int:
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TrainingError(
            f"the training data is {type(data).__name__}", "its samples cannot be read by number", "Give it `__len__` and `__getitem__`."
        )
    if len(data) == 0:
        raise TrainingError("the training data has no samples", "", "Check paths and splits in your data code.")
    return len(data)
