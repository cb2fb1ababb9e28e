"""What a reader of a verdict needs beside it: limit, observation, next step, machine, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from edgepress.report import numbers
from edgepress.report.present import TargetView, waiver_sentence

Json = Mapping[str, Any]

#: Options of a command with their values, quoted as a shell wants them, that one target alone is not run with.
_OF_THE_RUN = re.compile(r" --(?:only|out) (?:'[^']*'|\S)+")


def gate_facts(row: TargetView, gate: Json) -> list[str]:
    """`name: value` lines of one judged gate."""
    lines = [f"target: {row.name} ({row.data['device']}, {row.scheme})", f"executed by: {row.executed_by}"]
    lines += [f"gate: {gate['name']}", f"limit: {gate['limit']}", f"observed: {gate['observed']}"]
    if gate["interval"]:
        lines.append(f"interval: {numbers.interval(gate['interval'], 4)}")
    if gate.get("waiver"):
        lines.append(f"waiver: {waiver_sentence(gate)}")
    if gate["next_step"]:
        lines.append(f"next step: {gate['next_step']}")
    return lines


def run_facts(report: Json, row: TargetView | None = None) -> list[str]:
    """`name: value` lines about the run: machine, versions, and the command that repeats it (of one target alone where `row` is given)."""
    found = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        f"environment: {found['cpu']}, {found['threads']} threads, fingerprint {found['fingerprint']}",
        f"versions: {versions or 'not recorded'}",
        f"reproduce: {command(report, row)}",
    ]


def command(report: Json, row: TargetView | None = None) -> str:
    """The shell command that repeats a run; or one target of it, which takes the place of no run of all."""
    whole = str(report.get("command") or "edgepress run")
    return whole if row is None else f"{_OF_THE_RUN.sub('', whole)} --only {shlex.quote(row.name)}"
