"""How long-running code says how far it is; the process that runs it decides where that goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
Sink = Callable[[str, int, int], None]


def _nowhere(text: str, done: int, total: int) -> None:
    """Progress of code that nobody watches."""


_sink: Sink = _nowhere


def watch(sink: Sink) -> None:
    """Send all further progress of this process to `sink(text, done, total)`; `total` is 0 where unknown."""
    global _sink
    _sink = sink


def progress(text: str, done: int = 0, total: int = 0) -> None:
    """Say what is being done and how far it is."""
    _sink(text, done, total)


def track(items: Iterable[T], text: str) -> Iterator[T]:
    """Iterate over `items`, saying how far it is."""
    total = len(items) if isinstance(items, Sized) else 0
    for done, item in enumerate(items):
        progress(text, done, total)
        yield item
