"""The pages beside a run's own: what changed between two runs, and the trend of many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepress.report.console import print_run
from edgepress.report.html import render_diff, render_html, render_trend
from edgepress.report.junit import render_junit
from edgepress.report.summary import render_summary
from edgepress.report.trend import trends
from tests.project import edgepress
from tests.report_sample import failing, lost, report, target
from tests.test_report_console import printed
from tests.test_report_html import Page


def run(day: int, drop: float = 0.1, machine: str = "a" * 16, **more: Any) -> dict[str, Any]:
    row = target("tflite", metric={"value": 0.9, "drop": drop, "interval": [drop - 0.2, drop + 0.2], "samples": 1000})
    found = report(row, started=f"2026-03-{day:02}T09:15:00+00:00", **more)
    return found | {"environment": found["environment"] | {"fingerprint": machine}}


def written(folder: Path, **runs: dict[str, Any]) -> Path:
    for name, data in runs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "report.json").write_text(json.dumps(data))
    return folder


def test_the_page_of_a_diff_says_what_each_target_was(tmp_path: Path) -> None:
    before, after = report(target("tflite"), target("gone")), report(failing("tflite"), target("new"))
    words = "".join(Page(render_diff(before, after)).text)
    for part in ("was pass", "was +0.12 pp", "was int8 static", "absent", "The earlier run was pass", "Nothing: checkpoint, recipe"):
        assert part in words
    place = written(tmp_path, a=before, b=after)
    done = edgepress("diff", place / "a", place / "b", "--html", tmp_path / "new" / "diff.html")
    assert done.returncode == 0 and "pass -> fail" in done.stdout
    assert (tmp_path / "new" / "diff.html").read_text() == render_diff(before, after)


def test_a_trend_goes_from_the_oldest_run_to_the_latest(tmp_path: Path) -> None:
    written(tmp_path / "runs", z=run(1, 0.1), a=run(3, 0.9), m=run(2, 0.4))
    (tmp_path / "runs" / "latest").symlink_to("a")
    done = edgepress("trend", tmp_path / "runs", "--html", tmp_path / "trend.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "trend.html").read_text()
    assert "The latest of 3 runs, 2026-03-03 09:15" in page
    drop = next(panel for panel in trends([run(1, 0.1), run(2, 0.4), run(3, 0.9)]) if panel.title == "tflite: drop")
    assert [dot.x for dot in drop.dots] == sorted(dot.x for dot in drop.dots) and drop.dots[0].y > drop.dots[1].y > drop.dots[2].y
    assert drop.latest == "+0.90 pp" and len(drop.lines) == 1


def test_latencies_of_different_machines_are_not_joined() -> None:
    panels = {panel.title: panel for panel in trends([run(1), run(2), run(3, machine="b" * 16), run(4, machine="b" * 16)])}
    assert len(panels["tflite: latency over fp32"].lines) == 2 and len(panels["tflite: drop"].lines) == 1


def test_a_target_that_was_lost_leaves_a_gap() -> None:
    panels = {panel.title: panel for panel in trends([run(1), run(2), report(lost("tflite")), run(4), run(5)])}
    drop = panels["tflite: drop"]
    assert len(drop.dots) == 4 and len(drop.lines) == 2


def test_one_run_is_a_trend_too() -> None:
    assert "The latest of 1 run," in render_trend([run(1)])


@pytest.mark.parametrize("runs", [{}, {"a": run(1), "b": run(2, project="another")}])
def test_nothing_to_draw_is_one_clear_error(tmp_path: Path, runs: dict[str, dict[str, Any]]) -> None:
    written(tmp_path / "runs", **runs)
    done = edgepress("trend", tmp_path / "runs", "--html", tmp_path / "trend.html")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "trend.html").exists()


def test_the_size_is_what_one_device_loads_on_every_page() -> None:
    engines = {"artifact": {"path": "bundle/tensorrt", "sha256": "ab" * 32, "size_bytes": 2_600_000}, "facts": {"device_bytes": 1_300_000}}
    made = report(target("tensorrt", **engines))
    pages = {
        "report": render_html(made),
        "summary": render_summary(made),
        "diff": render_diff(report(target("tensorrt")), made),
        "trend": render_trend([made]),
        "terminal": printed(print_run, made, Path("r"), width=200),
    }
    assert [name for name, page in pages.items() if "1.30 MB" not in page] == []
    assert [name for name, page in pages.items() if "2.60 MB" in page.replace("1.30 MB on one device, 2.60 MB for all", "")] == []
    assert 'name="size_bytes" value="1300000"' in render_junit(made)
