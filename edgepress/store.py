"""Content-addressed results: what a step made, found again by everything it depended on.

A step's *static key* covers its function, parameters and the digests of its inputs. What it depends on beyond that is known only
after it ran: the files its code read, the folders it listed, the packages and edgepress modules it imported. These are recorded
beside the result, and a later run is a hit when the record still matches (the scheme of ccache's direct mode).

    objects/<key>/files/        what the step wrote
    objects/<key>/record.json   value, digest, sha256 of every file, what it depended on
    steps/<static key>/         one empty file per object that was ever made under this key
    scratch/<static key>/       state of a training that is running, or was killed

An object appears by one rename, whole; reads verify the hashes. Two runs may share a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgepress.disk import writing
from edgepress.isolate import Outcome
from edgepress.targets.errors import IntegrityError

#: The key of a value that says how long its parts took: two results that differ in it alone are the same result.
TIMING = "timing"

#: Why a step without any result has none.
NEVER_RUN = "never run"

#: What a result may depend on: see `Record.depends`.
_DEPENDS = {"files", "folders", "packages", "sources"}


@dataclass(frozen=True)
class Record:
    """One stored result.

    Attributes:
        value: the JSON value the step returned.
        digest: sha256 over the value (but for its `timing`) and the files: what later steps depend on.
        folder: where the files are.
        files: relative path -> sha256 of each file in `folder`.
        seconds: how long making it took.
        depends: `{"files": {path: sha256}, "folders": {path: sha256}, "packages": {name: version}, "sources": {path: sha256}}`.
    """

    value: Any
    digest: str
    folder: Path
    files: Mapping[str, str]
    seconds: float
    depends: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Store:
    """Results on disk, shared by every run that names the same folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._versions: dict[str, str] = {}

    def find(self, static_key: str) -> tuple[Record | None, str]:
        """Look a result up.

        Returns:
            The record and "", or None and why there is none.

        A result whose bytes changed on disk, or whose record no longer says what it said, is dropped, to be made again.
        """
        reason = NEVER_RUN
        folder = self.root / "steps" / static_key
        if not folder.is_dir():
            return None, reason
        for mark in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns, reverse=True):
            record = self._load(static_key, mark.name)
            if record is None:
                if (self.root / "objects" / mark.name).is_dir():
                    reason = "the stored record was damaged"
                    self._drop(mark.name)
            elif change := self._change(record.depends):
                reason = change
            elif damaged := self._damaged(record):
                reason = f"stored file {damaged!r} was damaged"
                self._drop(mark.name)
            else:
                return record, ""
        return None, reason

    def workspace(self) -> Path:
        """A fresh folder on the store's file system; a step writes into its `files/`."""
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        space = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        (space / "files").mkdir()
        return space

    @contextlib.contextmanager
    def scratch(self, static_key: str, fresh: bool = False) -> Iterator[Path]:
        """A folder that outlives the process, for a step that goes on where it was killed; one process holds it at a time.

        Args:
            static_key: the step's.
            fresh: empty it first.
        """
        from filelock import FileLock

        folder = self.root / "scratch" / static_key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # the system lets go of it when its holder dies
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            yield folder

    def put(self, static_key: str, outcome: Outcome, space: Path) -> Record:
        """Keep what a step wrote into a workspace, which is consumed. Where another run was first, its result is returned.

        Raises:
            IntegrityError: a damaged result is in the way and cannot be removed.
        """
        folder = space / "files"
        files = {p.relative_to(folder).as_posix(): self.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        depends = {
            "files": {path: self.sha256(Path(path)) for path in outcome.files if Path(path).is_file()},  # one may be gone by now
            "folders": {path: _listing(Path(path)) for path in outcome.folders},
            "packages": dict(outcome.packages),
            "sources": {path: self.sha256(Path(path)) for path in outcome.sources},
        }
        key, digest = _object_key(static_key, depends), _digest(outcome.value, files)
        record = Record(outcome.value, digest, self.root / "objects" / key / "files", files, outcome.seconds, depends)
        data = {name: part for name, part in vars(record).items() if name != "folder"}
        with writing(space):
            (space / "record.json").write_text(json.dumps(data))
        record = self._placed(static_key, key, space) or record
        mark = self.root / "steps" / static_key / key
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return record

    def _placed(self, static_key: str, key: str, space: Path) -> Record | None:
        """Move a workspace to its place. A whole result that is there stays and is returned, a damaged one goes."""
        place = self.root / "objects" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                space.rename(place)
                return None
            except OSError:
                if not place.is_dir():
                    raise
            present = self._load(static_key, key)
            if present is not None and not self._damaged(present):
                self.discard(space)
                return present
            self._drop(key)
        raise IntegrityError(f"the stored result {str(place)!r} is damaged and cannot be replaced", "", "Remove that folder and run again.")

    def discard(self, space: Path) -> None:
        """Remove a workspace whose step failed."""
        shutil.rmtree(space, ignore_errors=True)

    def sha256(self, path: Path) -> str:
        """Hash of a file's bytes; asked twice for an unchanged file, it is read once per process."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]

    def _load(self, static_key: str, key: str) -> Record | None:
        """A record that says what it said when it was written; None where it is gone, cut, changed or another version's."""
        folder = self.root / "objects" / key
        try:
            record = Record(**json.loads((folder / "record.json").read_text()), folder=folder / "files")
            whole = record.depends.keys() == _DEPENDS
            whole = whole and _object_key(static_key, record.depends) == key and _digest(record.value, record.files) == record.digest
        except (FileNotFoundError, ValueError, TypeError, AttributeError, IntegrityError):
            return None
        return record if whole else None

    def _drop(self, key: str) -> None:
        space = self.workspace()
        with contextlib.suppress(OSError):  # another run dropped it first
            (self.root / "objects" / key).rename(space / "dropped")
        self.discard(space)

    def _change(self, depends: Mapping[str, Mapping[str, str]]) -> str:
        """The first recorded dependency that is not as it was, in words; "" when all are."""
        for name, old in depends["packages"].items():
            new = self._version(name)
            if new != old:
                return f"{name} is {new}, was {old}"
        for path, old in depends["files"].items():
            if not Path(path).is_file():
                return f"{Path(path).name} is gone"
            if self.sha256(Path(path)) != old:
                return f"{Path(path).name} changed"
        for path, old in depends["folders"].items():
            if not Path(path).is_dir() or _listing(Path(path)) != old:
                return f"the files in {Path(path).name}/ changed"
        for path, old in depends["sources"].items():
            if not Path(path).is_file() or self.sha256(Path(path)) != old:
                return f"edgepress's own {Path(path).name} changed"
        return ""

    def _version(self, name: str) -> str:
        if name not in self._versions:
            try:
                self._versions[name] = version(name)
            except PackageNotFoundError:
                self._versions[name] = "not installed"
        return self._versions[name]

    def _damaged(self, record: Record) -> str:
        for name, digest in record.files.items():
            path = record.folder / name
            if not path.is_file() or self.sha256(path) != digest:
                return name
        return ""


def fingerprint(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form.

    Raises:
        IntegrityError: the value holds NaN or an infinity, which JSON cannot carry.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise IntegrityError("a result holds a number that is not finite", str(error)) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _object_key(static_key: str, depends: Mapping[str, Mapping[str, str]]) -> str:
    return fingerprint({"static": static_key, "depends": depends})


def _digest(value: Any, files: Mapping[str, str]) -> str:
    made = {name: part for name, part in value.items() if name != TIMING} if isinstance(value, dict) else value
    return fingerprint({"value": made, "files": files})


def _listing(folder: Path) -> str:
    return hashlib.sha256("\n".join(sorted(p.name for p in folder.iterdir())).encode()).hexdigest()
