"""The accepted release's own files, where they are at hand: measured beside the candidate they need no recorded figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepress.baseline.file import Baseline, Entry
from edgepress.bundle.digest import digest
from edgepress.targets.errors import ConfigError, IntegrityError


@dataclass(frozen=True)
class AtHand:
    """An accepted artifact.

    Attributes:
        sha256: of the artifact.
        folder: a target's folder in a bundle.
        artifact: the artifact as JSON, its paths relative to `folder`.
    """

    sha256: str
    folder: Path
    artifact: Mapping[str, Any]

    @property
    def inputs(self) -> Any:
        """Its inputs, as a signature has them in JSON."""
        return self.artifact["signature"]["inputs"]


def at_hand(baseline: Baseline, file: Path, fingerprint: str, given: Path | None) -> dict[str, AtHand]:
    """Target -> its accepted artifact, by its sha256.

    Looked for below `given`, else in the run the baseline was accepted from, as long as that was on this machine: who wants
    an artifact from elsewhere to be timed here says so.

    Args:
        file: the baseline's.
        fingerprint: of this machine.
        given: a run, a bundle, or a folder that holds some.

    Raises:
        ConfigError: `given` is no folder.
        IntegrityError: a bundle's listing in it cannot be read.
    """
    if given is not None and not given.is_dir():
        raise ConfigError(f"--baseline-artifacts {str(given)!r} is not a folder", "", "Name a run, a bundle, or a folder that holds some.")
    found = {}
    for target, entry in baseline.entries.items():
        place = given if given is not None else file.parent / entry.run if entry.fingerprint == fingerprint else None
        artifact = _find(entry, place) if place is not None else None
        if artifact is not None:
            found[target] = artifact
    return found


def _find(entry: Entry, place: Path) -> AtHand | None:
    for listing in _listings(place):
        try:
            artifacts = json.loads(listing.read_text())["artifacts"]
            matching = [item for item in artifacts if item["sha256"] == entry.artifact and item["runtime"] == entry.runtime]
            folders = [(listing.parent / item["folder"], item["artifact"]) for item in matching]
            for folder, artifact in folders:
                path = folder / artifact["path"]
                if path.exists() and digest(path) == entry.artifact:
                    return AtHand(entry.artifact, folder.resolve(), artifact)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{str(listing)!r} does not list artifacts", str(error), "Leave it out, or restore the bundle.") from error
    return None


def _listings(place: Path) -> Iterator[Path]:
    """Every bundle.json at and below a folder, the nearest first."""
    return iter(sorted(place.rglob("bundle.json"), key=lambda path: (len(path.parts), path)))
