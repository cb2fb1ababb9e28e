"""OpenVINO Model Server: `config.json` and `models/<model>/1/<files>`; paths are relative to config.json.

https://docs.openvino.ai/2025/model-server/ovms_docs_models_repository.html and ovms_docs_parameters.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepress.bundle.layouts.request import Request, artifact_files, link


def lacks(entry: Mapping[str, Any]) -> str | None:
    """Why the server is not given an artifact: other formats would run in OpenVINO, where they were not validated."""
    return None if entry["runtime"] == "openvino" else f"it was validated in {entry['runtime']}, and this server runs OpenVINO"


def write(request: Request) -> None:
    """One model per artifact, listed in config.json."""
    listed = []
    for entry in request.entries:
        name = request.model_name(entry)
        for path, file in artifact_files(request.bundle, entry).items():
            link(file, request.folder / "models" / name / "1" / path)
        listed.append({"config": {"name": name, "base_path": f"models/{name}"}})
    text = json.dumps({"model_config_list": listed}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (request.folder / "config.json").write_text(text, "utf-8", newline="\n")
