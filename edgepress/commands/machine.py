"""`edgepress targets` and `edgepress doctor`: what there is, and what works here."""

from __future__ import annotations

import json
import platform
from typing import Any

import typer

from edgepress.machine import cores, cpu_name, fingerprint
from edgepress.targets.catalog import CATALOG, CatalogEntry
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Support
from edgepress.targets.rules import rules_for


def show_targets(as_json: bool) -> None:
    """The catalog, with what is usable here."""
    from edgepress.report.console import print_targets

    rows = _rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_targets(rows)


def check_machine(install: str | None, as_json: bool) -> None:
    """Versions, fingerprint, and per target what is missing and how to get it.

    Raises:
        EdgepressError: the runtime to install is unknown, or its installation failed.
    """
    from edgepress.environment import package_versions
    from edgepress.exporters.tensorrt_build import gpu_capability
    from edgepress.report.console import print_doctor

    if install is not None:
        _install(install)
        return
    capability = gpu_capability()
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "gpu": capability and f"NVIDIA, compute capability {capability}",
        "fingerprint": fingerprint(),
        "packages": package_versions(),
        "targets": _rows(),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_doctor(facts)


def _rows() -> list[dict[str, Any]]:
    from edgepress.exporters.base import quiet

    with quiet():  # torchao names the extensions of other Pythons that it could not load
        return [_row(name, CATALOG.get(name)) for name in sorted(CATALOG.table())]


def _row(name: str, entry: CatalogEntry) -> dict[str, Any]:
    from edgepress.exporters import EXPORTERS
    from edgepress.validators.runtimes import RUNTIMES

    exporter: Support = EXPORTERS.get(entry.runtime)().supports()
    runtime_class = RUNTIMES.get(entry.runtime)()
    runtime: Support = runtime_class.supports()
    row: dict[str, Any] = {
        "name": name,
        "runtime": entry.runtime,
        "device": entry.device,
        "file": entry.file,
        "precisions": list(rules_for(entry.runtime).precisions),
        "options": dict(entry.options),
        "export": vars(exporter),
        "run": vars(runtime),
        "timing": runtime_class.timing_unavailable(),
    }
    if entry.second_runtime:
        row["second_runtime"] = {"name": entry.second_runtime, **vars(RUNTIMES.get(entry.second_runtime)().supports())}
    return row


def _install(name: str) -> None:
    from edgepress.validators.runtimes.tflite_environment import install
    from edgepress.validators.runtimes.tflite_runtime import TfliteRuntime

    if name != TfliteRuntime.name:
        raise EdgepressError(f"--install {name!r} is not a runtime with an environment of its own", "", "Use tflite-runtime.")
    typer.echo(f"{name} is ready in {install()}")
