"""edgepress-baseline.yaml: one measured fact per line, sorted, so that a change of the accepted release can be reviewed as a diff.

Every target has a checksum over its facts and scores. It keeps no one from lying who can compute it; it shows figures that were changed
by hand or by a merge, which nobody measured.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from edgepress.config_check import build
from edgepress.config_models import SHA256, Strict, Whole
from edgepress.config_yaml import Source, read
from edgepress.targets.errors import ConfigError, EdgepressError, IntegrityError

SCHEMA = "edgepress/baseline/v1"
#: Beside the recipe, where the recipe does not say otherwise.
NAME = "edgepress-baseline.yaml"

_HEADER = """\
# The accepted release: what `against_baseline` gates compare with. Written by `edgepress baseline accept`.
# Figures are measured: accept another run rather than edit them. A target is forgotten by deleting its block and its scores.
"""
_PLAIN_KEY = re.compile(r"[A-Za-z][\w.-]*")
_TOP = ("project", "schema", "scores", "targets")
_ACCEPT_AGAIN = "Restore it from the repository, or accept a run again: `edgepress baseline accept RUN_DIR --reason TEXT`."

Sha = Annotated[str, Field(pattern=SHA256)]
Words = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Entry(Strict):
    """What was measured of one target's accepted artifact.

    Attributes:
        accepted, accepted_by, reason: when (ISO 8601, UTC), who and why.
        run: its folder, relative to that of the file; the artifact is timed again from there while it exists.
        verdict: of the target in that run.
        artifact, checkpoint, dataset: sha256 of the artifact, of the original checkpoint, and of the validation data (folder hash).
        fingerprint: of the machine that took latency and memory.
        drop, drop_low, drop_high: against the float original, in `drop_unit`, with the interval at `drop_confidence`.
        latency_ratio, latency_low, latency_high: against `latency_reference`, with the interval at `latency_confidence`.
        size_bytes: what one device loads.
        threads, batch: of latency and memory.
    """

    accepted: Words
    accepted_by: Words
    artifact: Sha
    batch: Whole | None = None
    checkpoint: Sha
    dataset: Sha
    device: Words
    drop: float
    drop_confidence: float
    drop_high: float
    drop_low: float
    drop_unit: str
    executed_by: Words
    fingerprint: Words
    latency_confidence: float | None = None
    latency_high: Positive | None = None
    latency_low: Positive | None = None
    latency_p50_ms: Positive | None = None
    latency_ratio: Positive | None = None
    latency_reference: str | None = None
    macs: Count
    metric: Words
    parameters: Count
    peak_memory_bytes: Whole | None = None
    precision: Words
    reason: Words
    run: Words
    runtime: Words
    samples: Whole
    scheme: Words
    size_bytes: Whole
    threads: Whole | None = None
    value: float
    verdict: Words


@dataclass(frozen=True)
class Baseline:
    """An accepted release.

    Attributes:
        project: of the recipe.
        entries: target -> what was measured of it.
        scores: target -> scores per sample (`validators.score_bits`), where its metric has some.
    """

    project: str
    entries: Mapping[str, Entry]
    scores: Mapping[str, str]


def read_baseline(path: Path, project: str) -> Baseline:
    """The accepted release of a project.

    Raises:
        ConfigError: the file is missing, no YAML, of another schema or project, or has a key or a value that does not belong there.
        IntegrityError: figures are not those that were accepted.
    """
    if not path.is_file():
        raise ConfigError(f"there is no baseline {str(path)!r}", "", "Write one: `edgepress baseline accept RUN_DIR --reason TEXT`.")
    source = read(path)
    data = source.data
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise source.error(("schema",), f"the schema is {found!r}", f"This version reads {SCHEMA}. {_ACCEPT_AGAIN}")
    for key in data:
        if key not in _TOP:
            raise source.error((key,), f"unknown key {key!r}", f"Known: {', '.join(_TOP)}. {_ACCEPT_AGAIN}")
    if data.get("project") != project:
        raise source.error(
            ("project",), f"the baseline is of project {data.get('project')!r}, the run of {project!r}", "Name another file."
        )
    targets, scores = _mapping(source, "targets"), _mapping(source, "scores")
    entries = {name: _entry(source, name, facts, scores.get(name)) for name, facts in targets.items()}
    for name in scores:
        if name not in entries:
            raise source.error(("scores", name), f"scores of {name!r}, which is no target here", "Delete the line.")
    return Baseline(project, entries, scores)


def render_baseline(baseline: Baseline) -> str:
    """The file's text: the same facts, the same bytes."""
    return _HEADER + "\n".join(_lines(baseline)) + "\n"


def _lines(baseline: Baseline) -> Iterator[str]:
    yield f"project: {_scalar(baseline.project)}"
    yield f"schema: {_scalar(SCHEMA)}"
    yield "targets:"
    for name, entry in sorted(baseline.entries.items()):
        facts = entry.model_dump(exclude_none=True)
        facts["checksum"] = _checksum(name, entry, baseline.scores.get(name))
        yield f"  {_key(name)}:"
        yield from (f"    {key}: {_scalar(value)}" for key, value in sorted(facts.items()))
    if baseline.scores:
        yield "scores:  # right or wrong on every validation sample, so that a later run can be paired with this one"
        yield from (f"  {_key(name)}: {_scalar(text)}" for name, text in sorted(baseline.scores.items()))


def _entry(source: Source, name: str, facts: Any, scores: object) -> Entry:
    place = ("targets", name)
    entry = build(Entry, facts, source, place, {"checksum": "of the facts"})
    if not isinstance(scores, str | None):
        raise source.error(("scores", name), "the scores per sample are no text", _ACCEPT_AGAIN)
    if facts.get("checksum") != _checksum(name, entry, scores):
        error: EdgepressError = source.error(place, f"the figures of {name!r} are not those that were accepted")
        raise IntegrityError(error.what, "their checksum differs: they were edited, or merged line by line", _ACCEPT_AGAIN)
    return entry


def _mapping(source: Source, key: str) -> dict[str, Any]:
    found = source.data.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise source.error((key,), f"{key!r} is not a mapping of targets", _ACCEPT_AGAIN)
    return found


def _checksum(name: str, entry: Entry, scores: str | None) -> str:
    text = json.dumps([name, entry.model_dump(exclude_none=True), scores], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _key(name: str) -> str:
    return name if _PLAIN_KEY.fullmatch(name) else _scalar(name, variables=False)


def _scalar(value: str | int | float, variables: bool = True) -> str:
    """As YAML on one line; text always in quotes, so that a hash of digits stays text. A `$` that would begin a variable is doubled."""
    if not isinstance(value, str):
        return repr(value)
    text = value.replace("${", "$${") if variables else value
    return str(yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf"))).rstrip("\n")
