"""`edgepress verify`: does a bundle have the bytes it was shipped with, and does it still compute what it computed?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgepress.bundle import provenance, sums
from edgepress.bundle.digest import digest, sha256
from edgepress.bundle.manifest import SCHEMA
from edgepress.isolate import Call, Limits, call
from edgepress.targets.errors import EdgepressError, ExecutionError, IntegrityError

LIMITS = Limits(timeout_s=300.0, memory_bytes=8 << 30)
Replayer = Callable[[Mapping[str, Any], Path], dict[str, Any]]


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was shipped.

    Attributes:
        path: relative to the bundle.
        what: `changed`, `missing`, `extra`, `link`, or which record it disagrees with.
    """

    path: str
    what: str


@dataclass(frozen=True)
class Replay:
    """The golden samples of one target.

    Attributes:
        outcome: `match`, `mismatch`, `failed` (the runtime refused or crashed), `not here` (its runtime is missing) or `damaged`.
        detail: the largest deviation and its limit, or why there is none.
    """

    target: str
    runtime: str
    outcome: str
    detail: str
    executed_by: str | None = None
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Verification:
    """What was found in a bundle with `files` files."""

    bundle: str
    files: int
    damage: tuple[Damage, ...]
    replays: tuple[Replay, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 all files are intact and every replay that could be made matches; 1 a file or a replay does not; 2 no runtime is here."""
        outcomes = {replay.outcome for replay in self.replays}
        if self.damage or outcomes & {"mismatch", "failed", "damaged"}:
            return 1
        return 2 if outcomes == {"not here"} else 0

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return {**asdict(self), "exit_code": self.exit_code}


def verify(path: Path, replayer: Replayer | None = None) -> Verification:
    """Re-hash every file, then replay what is intact.

    Args:
        path: a bundle, or the RUN_DIR that holds one.
        replayer: runs one artifact; each in a process of its own by default.

    Raises:
        IntegrityError: there is no bundle here.
    """
    bundle = find_bundle(path)
    damage = inspect(bundle)
    if bundle.parent == path and (path / "report.json").is_file():
        damage += _against_report(path)
    files = sum(file.is_file() for file in bundle.rglob("*"))
    damaged = {item.path for item in damage}
    if damaged & {"bundle.json", sums.NAME}:
        return Verification(str(path), files, tuple(damage))
    entries = read_bundle(bundle)["artifacts"]
    replays = [_replayed(bundle, entry, damaged, replayer or replay_isolated) for entry in entries]
    return Verification(str(path), files, tuple(damage), tuple(replays))


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
    """Every file that is changed, missing, extra or a link, by SHA256SUMS; then whether bundle.json and the provenance agree with it."""
    links = [Damage(path.relative_to(bundle).as_posix(), "link") for path in bundle.rglob("*") if path.is_symlink()]
    paths = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file() and not path.is_symlink()}
    found = {name: sha256(path) for name, path in sorted(paths.items())}
    if sums.NAME not in found:
        return [*links, Damage(sums.NAME, "missing")]
    try:
        listed = sums.parse(paths[sums.NAME].read_bytes())
    except ValueError as error:
        return [*links, Damage(sums.NAME, f"changed: {error}"), *_by_manifest(bundle, found)]
    del found[sums.NAME]
    damage = [Damage(name, "missing") for name in sorted(listed.keys() - found.keys())]
    damage += [Damage(name, "extra") for name in sorted(found.keys() - listed.keys())]
    damage += [Damage(name, "changed") for name in sorted(found.keys() & listed.keys()) if found[name] != listed[name]]
    empty = [
        Damage(path.relative_to(bundle).as_posix(), "extra") for path in bundle.rglob("*") if path.is_dir() and not any(path.iterdir())
    ]
    damage += links + empty
    return damage or _records(bundle, found)


def _records(bundle: Path, found: Mapping[str, str]) -> list[Damage]:
    """SHA256SUMS agrees with the files; a bundle put together again by hand still has to agree with its own records."""
    damage = _by_manifest(bundle, found)
    try:
        subjects = provenance.subjects((bundle / provenance.NAME).read_text("utf-8"))
    except (OSError, ValueError) as error:
        return [*damage, Damage(provenance.NAME, f"unreadable: {error}")]
    expected = {name: value for name, value in found.items() if name not in (provenance.NAME, sums.NAME)}
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


def _against_report(run_dir: Path) -> list[Damage]:
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


def _replayed(bundle: Path, entry: Mapping[str, Any], damaged: set[str], replayer: Replayer) -> Replay:
    target, runtime, folder = entry["target"], entry["runtime"], bundle / entry["folder"]
    if hit := sorted(name for name in damaged if name.startswith(f"{entry['folder']}/")):
        return Replay(target, runtime, "damaged", f"not run: {hit[0]} is not as it was shipped")
    try:
        value = replayer(entry, folder)
    except EdgepressError as error:
        return Replay(target, runtime, "failed", str(error))
    if not value["usable"]:
        install = f" Run: {value['install']}" if value["install"] else ""
        return Replay(target, runtime, "not here", f"{value['missing'] or 'its runtime is not installed'}.{install}")
    outcome = "match" if value["match"] else "mismatch"
    detail = value["problem"]
    if detail is None:
        detail = f"largest deviation {value['max_abs_error']:.3g}, allowed {value['allowed']:.3g}, on {value['samples']} samples"
    return Replay(target, runtime, outcome, detail, value["executed_by"], value["max_abs_error"])


def replay_isolated(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Replay one artifact in a process of its own.

    Raises:
        EdgepressError: the runtime refused it, crashed, hung, or ate its memory limit.
    """
    with tempfile.TemporaryDirectory(prefix="edgepress-") as scratch:
        params = {"entry": dict(entry), "folder": str(folder.absolute())}
        request = Call("edgepress.bundle.replay:replay", params, Path(scratch), label=f"replay {entry['target']}")
        value = call(request, LIMITS).value
    if not isinstance(value, dict):
        raise ExecutionError(f"replay of {entry['target']!r} returned {type(value).__name__}")
    return value
