"""An OCI image layout 1.0 whose images are models as CNCF ModelPack describes them: one per target, tagged with the target's folder.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md and https://github.com/modelpack/model-spec
Each file is one uncompressed layer, so blobs are the files of the bundle under the name of their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepress.bundle.digest import sha256
from edgepress.bundle.layouts.request import FOLDER, Request, artifact_files, link

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHT, _SETTINGS, _DOCUMENT, _CODE, _DATASET = (
    f"application/vnd.cncf.model.{kind}.v1.raw" for kind in ("weight", "weight.config", "doc", "code", "dataset")
)
_BLOBS = f"{FOLDER}/oci/blobs/sha256/"


def lacks(entry: Mapping[str, Any]) -> str | None:
    """Every artifact has a place."""
    return None


def write(request: Request) -> None:
    """`oci-layout`, `index.json` and `blobs/sha256/<hash>`."""
    manifests = [_image(request, entry) for entry in request.entries]
    _text(request.folder / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    _text(request.folder / "index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def disagreeing(found: Mapping[str, str]) -> list[str]:
    """Blobs of a bundle that are not what their name says.

    Args:
        found: every file of the bundle with its sha256.
    """
    return [name for name, value in found.items() if name.startswith(_BLOBS) and name.removeprefix(_BLOBS) != value]


def _image(request: Request, entry: Mapping[str, Any]) -> dict[str, Any]:
    layers = [_layer(request, file, name, kind) for name, file, kind in _files(request, entry)]
    config = {
        "descriptor": {"name": request.model_name(entry), **({"licenses": [request.license]} if request.license else {})},
        "config": _technical(request, entry),
        "modelfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    annotations = {"org.opencontainers.image.title": f"{request.project} {entry['target']}"}
    if request.license:
        annotations["org.opencontainers.image.licenses"] = request.license
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, **_blob(request, config)},
        "layers": layers,
        "annotations": annotations,
    }
    tag = {"org.opencontainers.image.ref.name": entry["folder"]}
    return {"mediaType": MANIFEST, "artifactType": ARTIFACT, **_blob(request, manifest), "annotations": tag}


def _files(request: Request, entry: Mapping[str, Any]) -> list[tuple[str, Path, str]]:
    """(path in the image, file, media type) of everything a device of this target needs."""
    folder = request.bundle / entry["folder"]
    weights = set(artifact_files(request.bundle, entry).values())
    kinds = {".py": _CODE, ".npz": _DATASET, ".json": _SETTINGS}
    files = [folder / name for name in entry["files"]]
    own = [(file.relative_to(folder).as_posix(), file, _WEIGHT if file in weights else kinds.get(file.suffix, _DOCUMENT)) for file in files]
    return own + [(name, request.bundle / name, _DOCUMENT) for name in request.documents]


def _technical(request: Request, entry: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "format": str(entry["artifact"]["facts"].get("format") or Path(entry["path"]).suffix.lstrip(".")),
        "precision": entry["precision"],
    }
    if entry["scheme"]["kind"] != "float":
        facts["quantization"] = entry["scheme"]["kind"]
    return {**facts, "paramSize": parameter_size(request.parameters)}


def parameter_size(count: int) -> str:
    """A number of parameters as ModelPack writes it: `272.5k`, `22.7m`."""
    scale, letter = next((scale, letter) for scale, letter in ((1e9, "b"), (1e6, "m"), (1e3, "k")) if count >= scale or letter == "k")
    return f"{count / scale:.1f}{letter}"


def _layer(request: Request, file: Path, name: str, kind: str) -> dict[str, Any]:
    value = sha256(file)
    place = request.folder / "blobs" / "sha256" / value
    if not place.exists():
        link(file, place)
    return {"mediaType": kind, "digest": f"sha256:{value}", "size": file.stat().st_size, "annotations": {"org.cncf.model.filepath": name}}


def _blob(request: Request, content: object) -> dict[str, Any]:
    raw = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    value = hashlib.sha256(raw).hexdigest()
    place = request.folder / "blobs" / "sha256" / value
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(raw)
    return {"digest": f"sha256:{value}", "size": len(raw)}


def _text(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n", "utf-8", newline="\n")
