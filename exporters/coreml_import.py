"""coremltools without what it looks for at import and this package never asks of it, and without checks after each of its 110 passes."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

#: Frameworks whose models coremltools converts, and hubs it reads, where they are installed.
_UNUSED = ("sklearn", "transformers", "xgboost", "libsvm", "executorch", "tensorflow", "torchvision", "torchaudio")


def coremltools() -> ModuleType:
    """The module `coremltools`; converters of other frameworks than PyTorch are off in it, unless it was imported before."""
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    hidden = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it raises ModuleNotFoundError
    try:
        return importlib.import_module("coremltools")
    finally:
        for name in hidden:
            del sys.modules[name]


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
