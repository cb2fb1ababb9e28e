"""The hash of a file or a folder, as report.json and bundle.json state it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(path: Path) -> str:
    """sha256 in hex: of a file's bytes, or of a folder's lines `<relative posix path> <sha256 of the file>`, sorted by path.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise FileNotFoundError(path)
    lines = [f"{name} {value}\n" for name, value in tree(path).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder`: relative posix path -> sha256, sorted by path."""
    files = sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file())
    return {name: sha256(file) for name, file in files}


def sha256(file: Path) -> str:
    """sha256 of a file in hex, read in pieces."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def loaded_bytes(size: int, facts: Mapping[str, Any] | None) -> int:
    """What one device loads of an artifact: where it has a file for each kind of device, the largest of them.

    Args:
        size: bytes of the whole artifact.
        facts: what its exporter says of it.
    """
    return int((facts or {}).get("device_bytes") or size)
