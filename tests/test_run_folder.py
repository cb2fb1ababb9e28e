"""Every run has a folder of its own, known to be usable before the first step, and whole or not there."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgepress.run_folder import reserved
from edgepress.targets.errors import ConfigError
from tests.project import digits, edgepress

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def published(out: Path | None, text: str) -> Path:
    with reserved(out, NOON) as folder:
        (folder.staging / "report.json").write_text(text)
        folder.publish()
    return folder.place


def test_runs_of_one_second_have_folders_of_their_own_that_sort_by_time(tmp_path: Path) -> None:
    with reserved(None, NOON) as first, reserved(None, NOON) as second:  # both run
        for folder, text in ((first, "first"), (second, "second")):
            (folder.staging / "report.json").write_text(text)
            folder.publish()
    third = published(None, "third")
    names = ["20260301-120000", "20260301-120000-2", "20260301-120000-3"]
    assert [folder.name for folder in (first.place, second.place, third)] == names
    assert [(tmp_path / "runs" / name / "report.json").read_text() for name in names] == ["first", "second", "third"]
    assert sorted([*names, "20260301-120001"]) == [*names, "20260301-120001"]
    assert (tmp_path / "runs" / "latest" / "report.json").read_text() == "third"
    assert sorted(os.listdir(tmp_path / "runs")) == [*names, "latest"]  # noqa: PTH208


@pytest.mark.parametrize("out", [None, Path("out")])
def test_a_run_that_fails_leaves_nothing_and_keeps_the_older_one(tmp_path: Path, out: Path | None) -> None:
    place = published(out, "old")
    with pytest.raises(KeyboardInterrupt), reserved(out, NOON) as folder:
        (folder.staging / "report.json").write_text("half")
        raise KeyboardInterrupt
    assert (place / "report.json").read_text() == "old"
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(".")] == []


def test_out_replaces_an_older_run(tmp_path: Path) -> None:
    for left in ("partial", "old"):  # by a killed run whose process had the same number
        (tmp_path / f".out.{os.getpid()}.{left}" / "bundle").mkdir(parents=True)
    published(Path("out"), "old")
    assert (published(Path("out"), "new") / "report.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("runs/latest", "it is the name of the link to the newest run"),
        ("link", "a run would replace the link"),
        ("file", "is not a run and not empty"),
        ("file/out", "cannot be written: .*file', which a run is written into"),
        pytest.param("/proc/out", "cannot be written: '/proc'", marks=pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")),
        pytest.param("/dev/shm", "is a mount point", marks=pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no mount")),
    ],
)
def test_an_out_that_cannot_be_replaced_is_refused_at_once(tmp_path: Path, out: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=why), reserved(Path(out), NOON):
        pass


def test_the_link_to_the_newest_run_cannot_be_the_folder_of_one_once_it_is_there(tmp_path: Path) -> None:
    place = published(None, "old")
    with pytest.raises(ConfigError, match="name of the link"), reserved(Path("runs/latest"), NOON):
        pass
    (tmp_path / "runs" / "latest").unlink()
    place.rename(tmp_path / "runs" / "latest")  # what earlier versions left
    with pytest.raises(ConfigError, match="should be a link"), reserved(None, NOON):
        pass


def test_a_run_says_so_before_its_first_step(tmp_path: Path) -> None:
    done = edgepress("run", digits(tmp_path / "project"), "--out", "runs/latest")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "runs/latest" in done.stderr and "Name the folder itself" in done.stderr
