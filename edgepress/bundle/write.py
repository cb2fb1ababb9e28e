"""Write RUN_DIR/bundle: same inputs, same bytes; it appears whole or not at all.

bundle.json  README.md  sbom.cdx.json  provenance.intoto.jsonl  SHA256SUMS  input_statistics.json  LICENSE…
<target>/<artifact>  <target>/golden_inputs.npz  golden_outputs.npz  golden.json  run.py
layouts/<layout>/…
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgepress.bundle import card, inputs, layouts, manifest, provenance, sbom, sums
from edgepress.bundle.digest import digest, size_bytes, tree
from edgepress.bundle.golden import golden
from edgepress.bundle.release import Release
from edgepress.bundle.scripts import run_script
from edgepress.targets.errors import IntegrityError
from edgepress.targets.nouns import Artifact

BUNDLE = "bundle"


@dataclass(frozen=True)
class Shipment:
    """What one target ships.

    Attributes:
        target: the target's name in the report.
        runtime: key of its runtime.
        artifact: its paths are relative to `source`.
        source: folder the export wrote.
        golden: folder with `golden_inputs.npz` and `golden_outputs.npz`.
        parents: sha256 of what it was made from, by name (`checkpoint`, `config`, `program`).
        preprocessing: what has to happen to a raw sample before it goes in, in words or as data; None when the project's data code does it.
    """

    target: str
    runtime: str
    artifact: Artifact
    source: Path
    golden: Path
    parents: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Any = None


def folders(targets: Sequence[str]) -> dict[str, str]:
    """Target name -> its folder in the bundle: the name up to the first colon; where an earlier target has that one, the whole name.

    Args:
        targets: in the order of the report.
    """
    taken: dict[str, str] = {}
    for target in targets:
        short, whole = _file_name(target.split(":")[0]), _file_name(target)
        choices = [short, whole, *(f"{whole}-{number}" for number in range(2, len(targets) + 2))]
        taken[target] = next(folder for folder in choices if folder not in (layouts.FOLDER, *taken.values()))
    return taken


def shipped_artifacts(shipments: Sequence[Shipment]) -> dict[str, dict[str, Any]]:
    """Target name -> the `artifact` entry of report.json: `{"path", "sha256", "size_bytes"}`, path relative to RUN_DIR."""
    places = folders([shipment.target for shipment in shipments])
    entries: dict[str, dict[str, Any]] = {}
    for shipment in shipments:
        path = shipment.source / shipment.artifact.path
        place = PurePosixPath(BUNDLE, places[shipment.target], shipment.artifact.path)
        entries[shipment.target] = {"path": str(place), "sha256": digest(path), "size_bytes": size_bytes(path)}
    return entries


def write_bundle(run_dir: Path, report: Mapping[str, Any], shipments: Sequence[Shipment], release: Release | None = None) -> str:
    """Write the bundle of a run; targets that have no shipment have no folder.

    Args:
        run_dir: receives `bundle/`; an older one is replaced.
        report: the report dictionary, its `artifact` entries from `shipped_artifacts`; its clock readings and durations are not used.
        shipments: one per target whose artifact exists.
        release: what the report does not say.

    Returns:
        The folder hash of the bundle (`edgepress.bundle.digest.digest`).

    Raises:
        IntegrityError: an artifact does not have the hash its report entry states.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / f".{BUNDLE}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _fill(partial, report, shipments, release or Release())
        _settle(partial)
        value = digest(partial)
        _replace(partial, run_dir / BUNDLE)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return value


def to_json(value: object) -> str:
    """JSON with sorted keys; only finite numbers."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _fill(bundle: Path, report: Mapping[str, Any], shipments: Sequence[Shipment], release: Release) -> None:
    entries = [_artifact(bundle, report, shipment) for shipment in shipments]
    for text in release.license_texts:
        _copy(text, bundle / text.name)
    if release.statistics is not None:
        _copy(release.statistics, bundle / inputs.NAME)
    described = layouts.describe(release.layouts, entries)
    _write(bundle / "bundle.json", to_json(manifest.manifest(report, entries, release, described)))
    _write(bundle / "README.md", card.render_card(report, entries, release, described))
    _write(bundle / "sbom.cdx.json", to_json(sbom.sbom(report, entries, release)))
    documents = [path.name for path in sorted(bundle.iterdir()) if path.is_file() and path.name != "bundle.json"]
    parameters = report["stages"][-1]["parameters"] if report["stages"] else report["reference"]["parameters"]
    layouts.write(release.layouts, layouts.Request(bundle, report["project"], entries, release.license, parameters, documents))
    _write(bundle / provenance.NAME, provenance.statement(report, entries, release, tree(bundle)))
    _write(bundle / sums.NAME, sums.render(tree(bundle)))


def _artifact(bundle: Path, report: Mapping[str, Any], shipment: Shipment) -> dict[str, Any]:
    """Ship one target; its entry in bundle.json."""
    target = next(target for target in report["targets"] if target["name"] == shipment.target)
    place = PurePosixPath(target["artifact"]["path"]).parts[1]
    _ship(bundle / place, shipment, target)
    _check(bundle / place / shipment.artifact.path, target)
    return manifest.entry(shipment, target, place, tree(bundle / place))


def _ship(folder: Path, shipment: Shipment, target: Mapping[str, Any]) -> None:
    """Copy, never link: who edits a bundle must not change the store."""
    folder.mkdir()
    for name in (shipment.artifact.path, *shipment.artifact.extra):
        _copy(shipment.source / name, folder / name)
    for name in ("golden_inputs.npz", "golden_outputs.npz"):
        _copy(shipment.golden / name, folder / name)
    _write(folder / "golden.json", to_json(golden(folder, shipment.artifact.path, target["precision"])))
    _write(folder / "run.py", run_script(shipment.runtime, shipment.artifact))


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, place)


def _check(path: Path, target: Mapping[str, Any]) -> None:
    stated = target["artifact"]["sha256"]
    found = digest(path)
    if found != stated:
        raise IntegrityError(
            f"the artifact of target {target['name']!r} has sha256 {found}",
            f"its report entry says {stated}",
            "Run again with --fresh.",
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _settle(bundle: Path) -> None:
    """One mode and, with SOURCE_DATE_EPOCH, one time for every file, so that an archive of the bundle repeats too."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    paths = sorted(bundle.rglob("*"), reverse=True)
    files = [path for path in paths if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "run.py"):  # last, as a layout may hold it under a second name
        path.chmod(0o755 if path.name == "run.py" else 0o644)
    if epoch:
        for path in (*paths, bundle):
            os.utime(path, (int(epoch), int(epoch)))


def _replace(partial: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        place.rename(old)
    partial.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _file_name(name: str) -> str:
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).lstrip(".")
    return safe or "target"
