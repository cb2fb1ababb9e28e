"""report.html: one file, nothing outside it, every target with its facts."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from edgepress.report.html import render_html
from edgepress.report.pareto import pareto
from edgepress.report.pictures import LEFT, RIGHT, pictures
from edgepress.report.present import attribution, views
from edgepress.report.slices import slice_picture
from tests.report_sample import gate, lost, not_executable, report, target

VOID = {"meta", "line", "rect", "br"}


class Page(HTMLParser):
    """Collects elements, and insists that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_nothing_is_loaded_from_outside() -> None:
    text = render_html(report())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=", text)
    assert all((a.get("href") or "").startswith("#") for a in page.all("a"))
    assert len(text.encode()) < 200_000


def test_every_link_within_the_page_arrives() -> None:
    page = Page(render_html(report()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)
    assert {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes} <= set(ids)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=x>", "{{ 7*7 }}", "a&b"])
def test_hostile_names_stay_text(name: str) -> None:
    data = report(
        target(name, device=name, executed_by=name, gates=[gate(name, name, name, "fail", next_step=name)]), lost(name), project=name
    )
    plain = report(target("n", gates=[gate("n", "n", "n", "fail", next_step="n")]), lost("n"))
    page, expected = Page(render_html(data)), Page(render_html(plain))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in expected.elements]
    assert name in "".join(page.text)


def slice_of(group: str, drop: float, judged: bool = True) -> dict[str, Any]:
    facts = {"value": 0.9, "reference": 0.9, "drop": drop, "interval": [drop - 1, drop + 1], "judged": judged}
    return {"by": "class", "group": group, "samples": 500, **facts}


def test_the_worst_slice_stands_beside_the_average_and_in_a_picture() -> None:
    slices = [slice_of("cat", 0.2), slice_of("dog", 4.5), slice_of("owl", 20.0, judged=False)]
    row = target("onnxruntime", slices=slices)
    row["gates"].append(gate("slice_drop", "at most 3.00 pp", "4.50 pp", "fail"))
    page = "".join(Page(render_html(report(row))).text)
    assert "worst of 2 slices class=dog loses +4.50 pp (3.50 to 5.50) on 500 samples; all +0.12 pp" in page
    picture = slice_picture(row, "pp")
    assert picture is not None
    assert [(mark.label, mark.verdict) for mark in picture.marks] == [("class=owl", "plain"), ("class=dog", "fail"), ("class=cat", "pass")]


def test_latencies_lie_beside_those_of_the_original() -> None:
    picture = next(p for p in pictures(report(target("a")), views(report(target("a")))) if p.title == "Latency distribution")
    (mark,) = picture.marks
    assert mark.low is not None and mark.x is not None and mark.high is not None and mark.band is not None
    assert mark.low < mark.x < mark.high < mark.band[0] < mark.band[1] and mark.text == "0.412 ms"


def test_better_files_lie_further_down_and_left_and_larger_ones_are_larger() -> None:
    fast, slow = target("fast"), target("slow", latency_ratio={"value": 0.8, "interval": [0.7, 0.9], "reference": "fp32"})
    slow["metric"] = slow["metric"] | {"drop": 2.0}
    slow["artifact"] = slow["artifact"] | {"size_bytes": 4 * fast["artifact"]["size_bytes"]}
    slow["tried"] = [
        {"scheme": "int8 dynamic", "drop_on_selection": 0.5, "latency_ratio": {"value": 0.6, "interval": [0.5, 0.7]}, "size_bytes": 9}
        | {"held": True, "why": "", "shipped": False}
    ]
    data = report(fast, slow, lost("gone"))
    found = pareto(data, views(data))
    assert found is not None
    points = {point.words.partition(":")[0]: point for point in found.points}
    assert points["fast"].x < points["slow, int8 dynamic"].x < points["slow"].x
    assert points["fast"].y > points["slow, int8 dynamic"].y > points["slow"].y
    assert points["fast"].radius < points["slow"].radius and points["slow, int8 dynamic"].number is None
    assert "Not measured here: gone." in found.caption and [entry[1] for entry in found.legend] == ["fast", "slow"]


def test_the_costs_of_the_steps_add_up_to_the_drop() -> None:
    row, sizes = (
        target("a"),
        {"parameters": 1, "macs": 1, "seconds": 1.0, "cached": False, "interval": [0.0, 2.0], "report": {}, "timing": None},
    )
    data = report(row)
    data["stages"] = [
        data["stages"][0],
        {"name": "prune 2.00x", "metric": 0.9, "drop": 0.8} | sizes,
        {"name": "distill kd", "metric": 0.91, "drop": 0.1} | sizes,
    ]
    parts = attribution(data, row)
    assert [name for name, _ in parts] == ["prune 2.00x", "distill kd", "export as int8 static"]
    assert [round(cost, 6) for _, cost in parts] == [0.8, -0.7, 0.02]
    assert "Where the drop comes from" in "".join(Page(render_html(data)).text)


def test_the_verdict_comes_before_everything_else() -> None:
    text = "".join(Page(render_html(report(target("onnxruntime")))).text)
    assert text.index("PASS") < text.index("1 target holds 3 gates.") < text.index("onnxruntime 1.32.0 CPU")


def test_only_what_did_not_pass_is_open() -> None:
    page = Page(render_html(report()))
    opened = {
        (attributes["class"] or "").split()[1]: "open" in attributes
        for attributes in page.all("details")
        if "target" in (attributes["class"] or "")
    }
    assert opened == {"pass": False, "accepted": False, "undecided": True, "fail": True, "error": True}


def test_tables_can_be_read_aloud() -> None:
    page = Page(render_html(report()))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("aria-labelledby") for attributes in page.all("svg") if attributes.get("role") == "img")
    assert page.all("html")[0]["lang"] == "en"


@pytest.mark.parametrize(
    "fact",
    [
        "GATHER_ND version 5",
        "no integer kernel in this runtime",
        "drop 11.6 pp, margin 1.0 pp",
        "edgepress run edgepress.yaml",
        "torch==2.13.0",
        "AMD EPYC 9B14",
        "killed by SIGKILL",
        "float32 [N, 3, 32, 32]",
        "1.6x off this machine's int8 peak of 79 GMAC/s (the fastest run of matrix products",
        "the artifact's own runtime does not exist on this machine",
    ],
)
def test_the_page_tells(fact: str) -> None:
    assert fact in "".join(Page(render_html(report())).text)


def test_additions_may_be_absent() -> None:
    bare = target("onnxruntime")
    for name in (
        "peak_distance",
        "scheme",
        "tried",
        "integer_share_of_macs",
        "float_ops",
        "also_executed_by",
        "unmeasured",
        "facts",
        "signature",
    ):
        del bare[name]
    del bare["kernels"]["source"]
    data = report(bare)
    del data["command"]
    assert "onnxruntime" in render_html(data)


def test_marks_lie_in_the_plot_in_the_order_of_their_values() -> None:
    data = report()
    for panel in pictures(data, views(data)):
        for mark in panel.marks:
            positions = [x for x in (mark.low, mark.x, mark.high) if x is not None]
            assert positions == sorted(positions)
            assert all(LEFT <= x <= RIGHT for x in [*positions, *([mark.limit] if mark.limit is not None else [])])


def test_a_picture_without_anything_to_show_is_left_out() -> None:
    data = report(not_executable("coreml", "undecided"))
    assert [panel.title for panel in pictures(data, views(data))] == ["Metric drop", "Size", "Integer arithmetic"]


def test_all_values_alike_still_make_a_picture() -> None:
    zero = {"value": 0.9, "drop": 0.0, "interval": [0.0, 0.0], "samples": 1}
    data: dict[str, Any] = report(target("a", metric=zero, gates=[]))
    assert pictures(data, views(data))[0].marks[0].x == pytest.approx(LEFT)


def test_colours_of_words_have_enough_contrast() -> None:
    css = re.search(r"<style>(.*?)</style>", render_html(report()), re.DOTALL)
    assert css
    light, dark = re.findall(r":root \{[^}]*--page.*?\}", css[1], re.DOTALL)[:2]
    for block in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "pass", "fail", "error", "undecided", "accepted"):
            for ground in ("page", "card"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(first: str, second: str) -> float:
    """WCAG 2.1, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_writing_a_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, edgepress.report.write, edgepress.report.html, edgepress.bundle.write, edgepress.report.console; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "matplotlib", "onnxruntime", "openvino", "coremltools", "jsonschema", "pandas"} & set(loaded)
