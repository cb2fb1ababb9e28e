"""What every layout is made from, and how it takes files over."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = "layouts"


@dataclass(frozen=True)
class Request:
    """A layout to write.

    Attributes:
        bundle: the bundle's folder, its other files in place.
        project: the project's name.
        entries: the artifacts of bundle.json that go in.
        license: of the checkpoint, an SPDX expression or None.
        parameters: of the model that was exported.
        documents: files of the bundle that describe every artifact, relative to it.
        name: of the layout.
    """

    bundle: Path
    project: str
    entries: Sequence[Mapping[str, Any]]
    license: str | None
    parameters: int
    documents: Sequence[str]
    name: str = ""

    def below(self, name: str, entries: Sequence[Mapping[str, Any]]) -> Request:
        """The same for one layout and the artifacts that have a place in it."""
        return replace(self, name=name, entries=entries)

    @property
    def folder(self) -> Path:
        """Where the layout goes."""
        return self.bundle / FOLDER / self.name

    def model_name(self, entry: Mapping[str, Any]) -> str:
        """How a server names an artifact, e.g. `digits-openvino`."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{self.project}-{entry['folder']}")


def link(source: Path, place: Path) -> None:
    """Give a file of the bundle a second name; a copy where the file system has no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def artifact_files(bundle: Path, entry: Mapping[str, Any]) -> dict[str, Path]:
    """Files an artifact consists of: name relative to the artifact's own folder -> file."""
    folder = bundle / entry["folder"]
    artifact = folder / entry["path"]
    found = {path.relative_to(artifact).as_posix(): path for path in sorted(artifact.rglob("*")) if path.is_file()}
    if artifact.is_file():
        found = {artifact.name: artifact}
    return found | {name: folder / name for name in entry["artifact"]["extra"]}
