"""report.html: one file that holds everything it shows; no script, no font, no link to anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from edgepress.report import numbers, pictures
from edgepress.report.layers import layer_picture, layer_sentences
from edgepress.report.present import WORDS, compressed_sentence, drop_unit, headline, pruned_sentences, scheme_label, unmeasured, views

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
            layers=layer_sentences(report),
            unit=drop_unit(report),
            panels=[*pictures.pictures(report, rows), *filter(None, map(layer_picture, report["targets"]))],
            command=report.get("command") or "edgepress run",
        )
    )
    return text


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
    environment.globals.update(n=numbers, geometry=pictures, words=WORDS, scheme_label=scheme_label, unmeasured=unmeasured)
    environment.filters["minus"] = _minus
    return environment


def _minus(text: object) -> str:
    """A hyphen in front of a number becomes a minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\u2212", str(text))
