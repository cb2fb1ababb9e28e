"""coremltools without what it looks for at import and this package never asks of it, and without checks after each of its 110 passes."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from edgepress.targets.hidden import hidden

#: Frameworks whose models coremltools converts, and hubs it reads, where they are installed.
_UNUSED = ("sklearn", "transformers", "xgboost", "libsvm", "executorch", "tensorflow", "torchvision", "torchaudio")


def coremltools() -> ModuleType:
    """The module `coremltools`; converters of other frameworks than PyTorch are off in it, unless it was imported before."""
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    with hidden(*_UNUSED):
        return importlib.import_module("coremltools")


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """While this lasts, programs are not checked for inconsistencies, which takes a quarter of a conversion: check what comes out of it."""
    kind = coremltools().converters.mil.mil.Program
    original = kind.validate
    kind.validate = lambda program, check_essential_scope=False: None
    try:
        yield
    finally:
        kind.validate = original
