"""edgepress: a trained PyTorch checkpoint, small and fast on every device, with proof that it still works."""

from __future__ import annotations

from importlib.metadata import version as _version

__version__ = _version("edgepress")
