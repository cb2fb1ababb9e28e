"""Packages that another one looks for when it is imported, and that nothing of ours asks of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """While this lasts, top-level modules that were not imported before raise ModuleNotFoundError, as if they were not installed."""
    away = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(away))  # type: ignore[arg-type]  # None: importing it raises
    try:
        yield
    finally:
        for name in away:
            del sys.modules[name]
