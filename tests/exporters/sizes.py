"""How large an exported artifact is."""

from __future__ import annotations

from pathlib import Path

from edgepress.targets.nouns import Artifact


def size_of(folder: Path, artifact: Artifact) -> int:
    """Bytes of the file, or of all files in the folder, that an export to `folder` made."""
    path = folder / artifact.path
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
