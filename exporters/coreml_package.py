"""Writing an .mlpackage whose bytes depend on nothing but the model: no random identifiers, no dates."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from edgepress.exporters.coreml_import import coremltools

#: Metadata that coremltools writes about the machine and the moment rather than the model.
_VOLATILE = ("com.github.apple.coremltools.conversion_date",)
_NAMESPACE = uuid.UUID("8d1f6f0e-6f35-5a7c-9c4d-3b7a51c40f2b")


def save(model: Any, path: Path) -> None:
    """Save a converted `coremltools.models.MLModel` reproducibly, replacing what is at `path`."""
    if path.exists():
        shutil.rmtree(path)
    model.save(str(path))
    normalise(path)


def normalise(path: Path) -> None:
    """Rewrite specification and manifest of a package deterministically.

    coremltools serialises protobuf maps in hash order and gives every item of the manifest a random identifier; both
    would make two exports of one model differ. Keys are sorted and identifiers derived from the item's path. The manifest is
    indented as coremltools writes it: it rewrites the file whenever it opens a package, which must not change a shipped byte.
    """
    ct = coremltools()
    manifest_path = path / "Manifest.json"
    manifest = json.loads(manifest_path.read_text())
    entries: dict[str, dict[str, Any]] = manifest["itemInfoEntries"]
    renamed = {old: str(uuid.uuid5(_NAMESPACE, entry["path"])).upper() for old, entry in entries.items()}
    manifest["itemInfoEntries"] = {renamed[old]: entry for old, entry in entries.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    manifest_path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")

    for entry in entries.values():
        file = path / "Data" / entry["path"]
        if file.suffix == ".mlmodel":
            spec = ct.proto.Model_pb2.Model()
            spec.ParseFromString(file.read_bytes())
            for key in _VOLATILE:
                spec.description.metadata.userDefined.pop(key, None)
            file.write_bytes(spec.SerializeToString(deterministic=True))
