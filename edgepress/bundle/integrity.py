"""Does a bundle have the bytes it was shipped with? Every file is hashed and every record is held against the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepress.bundle import provenance, sign, sums
from edgepress.bundle.digest import digest, sha256
from edgepress.bundle.layouts import oci
from edgepress.bundle.manifest import SCHEMA
from edgepress.targets.errors import IntegrityError


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was shipped.

    Attributes:
        path: relative to the bundle.
        what: `changed`, `missing`, `extra`, `link`, or which record it disagrees with.
    """

    path: str
    what: str


def find_bundle(path: Path) -> Path:
    """The bundle at `path`, or in the RUN_DIR at `path`.

    Raises:
        IntegrityError: there is none.
    """
    for folder in (path / "bundle", path):
        if any((folder / name).exists() for name in ("bundle.json", sums.NAME)):
            return folder
    raise IntegrityError(f"{str(path)!r} holds no bundle", "neither bundle.json nor SHA256SUMS is there", "Name RUN_DIR or RUN_DIR/bundle.")


def read_bundle(bundle: Path) -> dict[str, Any]:
    """The content of bundle.json.

    Raises:
        IntegrityError: it is missing or no bundle/v1 file.
    """
    try:
        data: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{str(bundle / 'bundle.json')!r} cannot be read", str(error)) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise IntegrityError(f"{str(bundle / 'bundle.json')!r} is not of schema {SCHEMA}")
    return data


def inspect(bundle: Path) -> list[Damage]:
    """Every file that is changed, missing, extra or a link, by SHA256SUMS; then whether the other records agree with it.

    They are bundle.json, the provenance, the names of OCI blobs, and what model.sig lists, whoever signed it.
    """
    links = [Damage(path.relative_to(bundle).as_posix(), "link") for path in bundle.rglob("*") if path.is_symlink()]
    paths = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file() and not path.is_symlink()}
    found = {name: sha256(path) for name, path in sorted(paths.items())}
    if sums.NAME not in found:
        return [*links, Damage(sums.NAME, "missing")]
    signed = found.pop(sign.NAME, None)
    try:
        listed = sums.parse(paths[sums.NAME].read_bytes())
    except ValueError as error:
        return [*links, Damage(sums.NAME, f"changed: {error}"), *_by_manifest(bundle, found)]
    own = found.pop(sums.NAME)
    damage = [Damage(name, "missing") for name in sorted(listed.keys() - found.keys())]
    damage += [Damage(name, "extra") for name in sorted(found.keys() - listed.keys())]
    damage += [Damage(name, "changed") for name in sorted(found.keys() & listed.keys()) if found[name] != listed[name]]
    empty = [
        Damage(path.relative_to(bundle).as_posix(), "extra") for path in bundle.rglob("*") if path.is_dir() and not any(path.iterdir())
    ]
    damage += links + empty
    damage = damage or _records(bundle, found)
    return damage if signed is None else damage + _by_signature(bundle, found | {sums.NAME: own}, {item.path for item in damage})


def _records(bundle: Path, found: Mapping[str, str]) -> list[Damage]:
    """SHA256SUMS agrees with the files; a bundle put together again by hand still has to agree with its own records."""
    damage = _by_manifest(bundle, found)
    try:
        subjects = provenance.subjects((bundle / provenance.NAME).read_text("utf-8"))
    except (OSError, ValueError) as error:
        return [*damage, Damage(provenance.NAME, f"unreadable: {error}")]
    expected = {name: value for name, value in found.items() if name not in (provenance.NAME, sums.NAME)}
    damage += [Damage(name, "disagrees with its name") for name in oci.disagreeing(found)]
    differing = sorted(name for name in expected.keys() | subjects.keys() if expected.get(name) != subjects.get(name))
    return damage + [Damage(name, f"disagrees with {provenance.NAME}") for name in differing]


def _by_manifest(bundle: Path, found: Mapping[str, str]) -> list[Damage]:
    """Files that do not have the hash bundle.json lists, and artifacts that do not have theirs."""
    try:
        entries = read_bundle(bundle)["artifacts"]
        damage = []
        for entry in entries:
            stated = {f"{entry['folder']}/{name}": value for name, value in entry["files"].items()}
            damage += [Damage(name, "disagrees with bundle.json") for name in sorted(stated) if found.get(name) != stated[name]]
            artifact = bundle / entry["folder"] / entry["path"]
            if not artifact.exists() or digest(artifact) != entry["sha256"]:
                damage.append(Damage(f"{entry['folder']}/{entry['path']}", "disagrees with bundle.json"))
    except (IntegrityError, KeyError, TypeError, AttributeError) as error:
        return [Damage("bundle.json", f"unreadable: {error}")]
    return damage


def _by_signature(bundle: Path, found: Mapping[str, str], known: set[str]) -> list[Damage]:
    """Files that are not those model.sig lists, but for the ones whose damage is known."""
    try:
        signed = sign.signed_files((bundle / sign.NAME).read_text("utf-8"))
    except (OSError, ValueError, IntegrityError) as error:
        return [Damage(sign.NAME, f"changed: {error}")]
    differing = sorted(name for name in found.keys() | signed.keys() if found.get(name) != signed.get(name))
    return [Damage(name, f"disagrees with {sign.NAME}") for name in differing if name not in known]


def against_report(run_dir: Path) -> list[Damage]:
    """Artifacts that are not those report.json speaks of."""
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    damage = []
    for target in report["targets"]:
        artifact = target["artifact"]
        if artifact and not (run_dir / artifact["path"]).exists():
            damage.append(Damage(artifact["path"].removeprefix("bundle/"), "missing, report.json names it"))
        elif artifact and digest(run_dir / artifact["path"]) != artifact["sha256"]:
            damage.append(Damage(artifact["path"].removeprefix("bundle/"), "disagrees with report.json"))
    return damage
