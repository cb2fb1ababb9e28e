"""Batches: their order, what is kept in memory, who reads them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from edgepress.compress.training import data as feed_module
from edgepress.compress.training.data import Batch, Feed
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import Listed, vectors


def listed(count: int = 50) -> Listed:
    return Listed([(np.full((2,), i, dtype=np.float64), i % 3) for i in range(count)])


def rows(batches: list[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_an_epoch_holds_every_sample_at_most_once_in_an_order_of_its_own() -> None:
    feed = Feed(vectors(50), 16, seed=1)
    first, second = rows(list(feed.batches(0))), rows(list(feed.batches(1)))
    assert [len(batch) for batch in first] == [16, 16, 16]
    assert len({row for batch in first for row in batch}) == 48 and first != second
    assert first == rows(list(Feed(vectors(50), 16, seed=1).batches(0)))
    assert first != rows(list(Feed(vectors(50), 16, seed=2).batches(0)))


def test_an_epoch_can_begin_in_the_middle() -> None:
    feed = Feed(vectors(50), 16, seed=1)
    assert rows(list(feed.batches(3, first=2))) == rows(list(feed.batches(3)))[2:]


def test_processes_share_the_batches_of_one() -> None:
    whole = rows(list(Feed(vectors(50), 16, seed=1).batches(0)))
    parts = [rows(list(Feed(vectors(50), 16, 1, world=2, rank=rank).batches(0))) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    assert {len(batch) for part in parts for batch in part} == {8}


def test_samples_that_stay_the_same_are_read_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_WORTH_A_WORKER_S", 1.0)
    data = listed()
    feed = Feed(data, 10, seed=0)
    probed = list(data.reads)
    for epoch in range(3):
        for batch in feed.batches(epoch):
            assert torch.equal(batch.inputs[0][:, 0], batch.index.float()) and batch.labels is not None
            assert torch.equal(batch.labels, batch.index % 3)
    assert sum(data.reads) == sum(probed) + sum(count == 0 for count in probed)
    assert batch.inputs[0].dtype == torch.float32 and batch.labels.dtype == torch.int64


def test_samples_are_read_anew_where_they_would_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MEMORY_SHARE", 0.0)
    monkeypatch.setattr(feed_module, "_WORTH_A_WORKER_S", 1.0)
    data = listed()
    feed = Feed(data, 10, seed=0)
    before = sum(data.reads)
    for epoch in range(2):
        for batch in feed.batches(epoch):
            assert torch.equal(batch.inputs[0][:, 0], batch.index.float())
    assert sum(data.reads) == before + 100


class Noisy(Dataset[Any]):
    """Draws from every generator, and may take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return torch.rand(2) + float(np.random.rand()), None


def drawn(feed: Feed, epoch: int, first: int = 0) -> torch.Tensor:
    return torch.cat([batch.inputs[0] for batch in feed.batches(epoch, first)])


def test_a_dataset_with_random_samples_repeats_them_for_the_same_seed_and_epoch() -> None:
    feed, again = Feed(Noisy(), 8, seed=5), Feed(Noisy(), 8, seed=5)
    torch.rand(7)
    assert torch.equal(drawn(feed, 0), drawn(again, 0))
    assert torch.equal(drawn(feed, 1)[8:], drawn(again, 1, first=1))
    assert not torch.equal(drawn(feed, 0).sort(0).values, drawn(feed, 1).sort(0).values)


def test_slow_samples_are_read_by_other_processes_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_WORTH_A_WORKER_S", 0.016)
    slow = Feed(Noisy(0.002), 8, seed=5)
    assert slow._workers() > 0
    there = drawn(slow, 0)
    monkeypatch.setattr(feed_module, "_WORTH_A_WORKER_S", 1.0)
    assert slow._workers() == 0
    assert torch.equal(there, drawn(slow, 0))


def test_data_without_labels_and_with_several_inputs_is_read() -> None:
    data = Listed([((torch.ones(2) * i, i), None) for i in range(8)])
    batch = next(Feed(data, 4, seed=0).batches(0))
    assert batch.labels is None and [tuple(x.shape) for x in batch.inputs] == [(4, 2), (4,)]
    assert torch.equal(batch.inputs[1], batch.index)


class Broken(Listed):
    def __getitem__(self, index: int) -> Any:
        if index == 33:
            raise ValueError("no such file")
        return super().__getitem__(index)


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_a_sample_that_cannot_be_read_is_named_whoever_reads_it(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_PROBED", 2)
    monkeypatch.setattr(feed_module, "_WORTH_A_WORKER_S", 0.0 if seconds else 1.0)
    feed = Feed(Broken(listed().items), 10, seed=0)
    assert bool(feed._workers()) == bool(seconds)
    with pytest.raises(TrainingError, match=r"reading sample 33 failed: ValueError: no such file"):
        list(feed.batches(0))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ((torch.ones(3), 0), r"tensor of shape \(3,\): others have torch.float32 of \(2,\)"),
        ((torch.ones(2), 0.5), r"torch.float32 tensor of shape \(\): others have torch.int64"),
        ((torch.ones(2),), "sample 7 is tuple: an .input, label. pair is needed"),
        (("word", 0), "a sample holds str"),
    ],
)
def test_a_sample_unlike_the_others_is_named(odd: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_PROBED", 2)
    items = listed(20).items
    items[7] = odd
    with pytest.raises(TrainingError, match=message):
        list(Feed(Listed(items), 20, seed=0).batches(0))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(("data", "message"), [(Listed([]), "no samples"), (Stream(), "cannot be read by number")])
def test_data_that_cannot_be_trained_on_says_why(data: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Feed(data, 4, seed=0)
