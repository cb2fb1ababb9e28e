"""SHA256SUMS: every other file of the bundle, in the form `sha256sum --check` reads, closed by a line that covers the file itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_CLOSING = "# sha256 of the lines above: "


def render(files: Mapping[str, str]) -> str:
    """The text for these files; sorted by path."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files) if name != NAME)
    return f"{lines}{_CLOSING}{hashlib.sha256(lines.encode()).hexdigest()}\n"


def parse(raw: bytes) -> dict[str, str]:
    """Relative path -> sha256.

    Raises:
        ValueError: the file is not as it was written, down to a byte.
    """
    text = raw.decode("utf-8")
    files = {}
    for line in text.splitlines()[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"the line {line[:80]!r} is damaged")
        files[match[2]] = match[1]
    if render(files) != text:
        raise ValueError("its closing line does not match the lines above")
    return files
