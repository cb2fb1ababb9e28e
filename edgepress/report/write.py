"""Write a report's four files, each appearing whole."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepress.disk import writing
from edgepress.report.html import render_html
from edgepress.report.junit import render_junit
from edgepress.report.summary import render_summary
from edgepress.targets.errors import MeasurementError


def write_report(run_dir: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.html, junit.xml and summary.md into `run_dir`, which is made if need be.

    Raises:
        MeasurementError: a number in the report is NaN or infinite; the message names where, and nothing is written.
    """
    texts = {
        "report.json": dump(report),
        "report.html": render_html(report),
        "junit.xml": render_junit(report),
        "summary.md": render_summary(report),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(run_dir / name, text)


def dump(report: Mapping[str, Any]) -> str:
    """The report as JSON text; keys keep the order of the report.

    Raises:
        MeasurementError: a number is NaN or infinite.
    """
    for where, value in _not_finite("report", report):
        raise MeasurementError(f"{where} is {value}", "only finite numbers can be judged", "See log.txt for the step that measured it.")
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_page(path: Path, text: str) -> None:
    """Write a file where the user asked for it, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one rename."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with writing(path), os.fdopen(handle, "w", encoding="utf-8", newline="\n") as sink:
            sink.write(text)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _not_finite(where: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(f"{where}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(f"{where}[{index}]", item)
