"""Random numbers that follow from what they are for, so that a run that was cut goes on with the same ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_for(*parts: int | str) -> int:
    """A seed below 2^63 that depends on all parts, in order, and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators that models and datasets draw from: torch's, numpy's and Python's."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # before that, torch.manual_seed would queue the seed with a traceback, at every call
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Give the caller's random generators back as they were; of GPUs the current one's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """On a GPU, convolutions by algorithms that give the same result every time, not by the ones that a trial found fastest."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
