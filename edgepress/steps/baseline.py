"""The accepted release's artifact, taken into the store, so that it is timed like an export of this run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgepress.bundle.digest import digest
from edgepress.targets.errors import IntegrityError


def fetch(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy a target's folder of a bundle.

    Args:
        params: `source` (the folder), `artifact` (as JSON) and its `sha256`.
        folder: receives `artifact/`.

    Raises:
        IntegrityError: what was copied does not have that hash.
    """
    shutil.copytree(params["source"], folder / "artifact", copy_function=shutil.copyfile)
    found = digest(folder / "artifact" / params["artifact"]["path"])
    if found != params["sha256"]:
        raise IntegrityError(f"the artifact in {params['source']!r} has sha256 {found}", f"{params['sha256']} was accepted", "Run again.")
    return {"artifact": params["artifact"]}
