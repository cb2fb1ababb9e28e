"""`edgepress verify` and `edgepress bench`: what is done with bundles."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import typer

from edgepress.isolate import Call, call
from edgepress.targets.errors import EdgepressError


def verify_bundle(path: Path, as_json: bool) -> int:
    """Re-hash a bundle and replay its golden samples.

    Returns:
        0 when all is as it was, 1 when something differs, 2 when it cannot be told.
    """
    from edgepress.bundle.verify import verify
    from edgepress.report.console import print_verification

    found = verify(path)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_verification(found.to_json())
    return found.exit_code


def time_pair(artifact: Path, against: Path, threads: int, as_json: bool) -> None:
    """Time two shipped artifacts of one runtime against each other."""
    first, second = _entry(artifact), _entry(against)
    if first["runtime"] != second["runtime"]:
        raise EdgepressError(
            f"{str(artifact)!r} is for {first['runtime']}, {str(against)!r} for {second['runtime']}",
            "a ratio is taken in one runtime",
            "Name two artifacts of the same target.",
        )
    params = {"candidate": first, "reference": second, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        value = call(Call("edgepress.steps.measure:pair", params, Path(folder), "bench", threads=threads)).value
    if as_json:
        typer.echo(json.dumps(value, indent=2))
        return
    low, high = value["interval"]
    typer.echo(f"{value['ratio']:.3f} ({low:.3f} to {high:.3f}) of the time of {against}, {value['pairs']} interleaved pairs")
    typer.echo(f"p50 {value['candidate_p50_ms']:.3f} ms against {value['reference_p50_ms']:.3f} ms in {value['executed_by']}, batch 1")


def _entry(folder: Path) -> dict[str, Any]:
    """A target's folder in a bundle: its artifact as JSON, its runtime, and where it is.

    Raises:
        EdgepressError: the folder is not one of a bundle.
    """
    listing = folder.parent / "bundle.json"
    if not listing.is_file():
        raise EdgepressError(
            f"{str(folder)!r} is not a target's folder in a bundle",
            "there is no bundle.json beside it",
            "Name e.g. runs/latest/bundle/tflite.",
        )
    for entry in json.loads(listing.read_text())["artifacts"]:
        if entry["folder"] == folder.name:
            return {"runtime": entry["runtime"], "artifact": entry["artifact"], "folder": str(folder.resolve())}
    raise EdgepressError(f"{str(listing)!r} does not list {folder.name!r}")
