"""What a child process printed: its last words for an error, and all of it for the log."""

from __future__ import annotations

import threading
from pathlib import Path

from edgepress import disk

_lock = threading.Lock()


def last_lines(output: Path) -> list[str]:
    """At most two, without what cannot be printed; none where there is no file."""
    if not output.exists():
        return []
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 4000))
        text = file.read().decode("utf-8", "replace")
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    return [line[:200] for line in lines if line][-2:]


def append(log: Path, label: str, output: Path) -> None:
    """Add at most the last megabyte of what a child printed to the log."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - (1 << 20)))
        text = file.read().decode("utf-8", "replace")
    if text.strip():
        with _lock, disk.writing(log), log.open("a") as sink:
            sink.write(f"\n== {label}\n{text.rstrip()}\n")
