"""summary.md: the verdict and one table, for the summary page of a CI job or a pull request comment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgepress.report import numbers
from edgepress.report.facts import command
from edgepress.report.present import TargetView, drop_unit, headline, parity_sentences, problems, views

_HEADS = ("Target", "Verdict", "Scheme", "Metric", "Drop", "Latency", "Size", "int8 MACs", "Executed by")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def render_summary(report: Mapping[str, Any], most_bytes: int | None = None) -> str:
    """The report as GitHub-flavoured Markdown.

    Args:
        report: the report dictionary.
        most_bytes: of the UTF-8 text; whole rows that do not fit are left out, and counted in a last line.
    """
    lines = _lines(report)
    return "\n".join(lines if most_bytes is None else _fitting(lines, most_bytes)) + "\n"


def _lines(report: Mapping[str, Any]) -> list[str]:
    reference = report["reference"]
    unit = drop_unit(report)
    lines = [
        f"## {escape(report['project'])}: {report['verdict'].upper()}",
        "",
        escape(headline(report)),
        "",
        "| " + " | ".join(_HEADS) + " |",
        "|" + "|".join(" --- " for _ in _HEADS) + "|",
        *("| " + " | ".join(map(escape, _cells(row, unit))) + " |" for row in views(report)),
        "",
        escape(
            f"Reference: fp32, {reference['metric']['name']} {numbers.metric(reference['metric']['value'], unit)} on "
            f"{reference['metric']['samples']:,} samples, {numbers.count(reference['parameters'])} parameters, "
            f"{numbers.size(reference['size_bytes'])}."
        ),
    ]
    found = [(row, verdict, what, step) for row, verdict, what, step in problems(report)]
    strange = parity_sentences(report)
    if found or strange:
        lines += ["", "### To look at", ""]
    lines += [f"- {escape(sentence)}" for sentence in strange]
    for row, verdict, what, step in found:
        lines.append(f"- **{escape(row.name)}** {verdict}: {escape(what)}" + (f". Next: {escape(step)}" if step else ""))
    return [*lines, "", f"Repeat: `{' '.join(command(report).replace('`', '').split())}`"]


def _fitting(lines: list[str], most: int) -> list[str]:
    """The lines, in order, that fit into `most` bytes beside the note that some do not; none where not even the note does."""
    note = "\n**{} rows did not fit here and are left out.** The whole report is in report.json."
    room = most - len(note) - 8
    kept: list[str] = []
    for line in lines:
        size = len(line.encode("utf-8", "replace")) + 1
        if size <= room:
            kept.append(line)
            room -= size
    if len(kept) == len(lines):
        return kept
    return [*kept, note.format(len(lines) - len(kept))] if most > len(note) + 8 else []


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _cells(row: TargetView, unit: str) -> list[str]:
    data = row.data
    metric, ratio = data["metric"], data["latency_ratio"]
    drop = f"{numbers.drop(metric['drop'], unit)} ({numbers.drop_interval(metric['interval'], unit)})" if metric else numbers.NONE
    latency = f"{numbers.ratio(ratio['value'])} ({numbers.interval(ratio['interval'])})" if ratio else numbers.NONE
    size = numbers.size(row.loaded_bytes) if row.loaded_bytes is not None else numbers.NONE
    return [
        row.name,
        row.verdict,
        row.scheme,
        numbers.metric(metric["value"], unit) if metric else numbers.NONE,
        drop,
        latency,
        f"{size} ({numbers.ratio(row.size_ratio)})" if row.size_ratio is not None else size,
        numbers.percent(row.integer_share),
        row.executed_by,
    ]
