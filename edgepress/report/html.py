"""report.html: one file that holds everything it shows; no script, no font, no link to anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from edgepress.report import numbers, pareto, pictures, trend
from edgepress.report.compare import COLUMNS, compare_runs
from edgepress.report.layers import layer_picture, layer_sentences
from edgepress.report.peak import distance_text
from edgepress.report.present import (
    WORDS,
    attribution,
    baseline_sentence,
    compressed_sentence,
    drop_unit,
    headline,
    parity_sentences,
    pruned_sentences,
    scheme_label,
    shown_target_verdict,
    shown_verdict,
    unmeasured,
    views,
    waiver_sentence,
)
from edgepress.report.slices import slice_picture, slice_sentences

if TYPE_CHECKING:
    from jinja2 import Environment


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one HTML page (UTF-8)."""
    rows = views(report)
    text: str = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            rows=rows,
            headline=headline(report),
            compressed=[line for line in (*pruned_sentences(report), compressed_sentence(report)) if line],
            layers=[*parity_sentences(report), *slice_sentences(report), *layer_sentences(report)],
            front=pareto.pareto(report, rows),
            unit=drop_unit(report),
            panels=[*pictures.pictures(report, rows), *_of_targets(report)],
            command=report.get("command") or "edgepress run",
        )
    )
    return text


def render_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Two runs as one HTML page (UTF-8)."""
    found = compare_runs(before, after)
    return str(_environment().get_template("diff.html").render(before=before, after=after, found=found, columns=COLUMNS))


def render_trend(runs: Sequence[Mapping[str, Any]]) -> str:
    """Many runs, the oldest first, as one HTML page (UTF-8)."""
    return str(_environment().get_template("trend.html").render(runs=runs, panels=trend.trends(runs), verdict=shown_target_verdict))


def _of_targets(report: Mapping[str, Any]) -> Iterator[pictures.Picture]:
    """The pictures of single targets: their slices and layers, where there are any."""
    for target in report["targets"]:
        yield from filter(None, (slice_picture(target, drop_unit(report)), layer_picture(target)))


@cache
def _environment() -> Environment:
    """Templates that escape everything and refuse a name they do not know."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgepress.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(
        n=numbers,
        geometry=pictures,
        plane=pareto,
        field=trend,
        words=WORDS,
        scheme_label=scheme_label,
        attribution=attribution,
        unmeasured=unmeasured,
        shown=shown_verdict,
        waiver=waiver_sentence,
        baseline=baseline_sentence,
        distance_text=distance_text,
    )
    environment.filters["minus"] = _minus
    return environment


def _minus(text: object) -> str:
    """A hyphen in front of a number becomes a minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\u2212", str(text))
