"""A full disk is one error that names it, whoever wrote."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from edgepress.disk import filled, writing
from edgepress.report.write import write_report
from tests.project import edgepress
from tests.report_sample import report

NO_SPACE = os.strerror(errno.ENOSPC)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


def test_a_failure_on_a_disk_without_room_is_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("4096 requested and 0 written")  # NumPy's words for it
    assert filled(error, (tmp_path,)) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 0))  # type: ignore[attr-defined]
    assert filled(error, (tmp_path,)) == str(tmp_path)


@needs_full
def test_a_write_names_its_file_and_other_errors_stay(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=NO_SPACE) as caught, writing(tmp_path / "file"), Path("/dev/full").open("w") as file:
        file.write("text")
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "none" / "file").write_text("")


@needs_full
def test_the_command_line_says_which_disk_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "run", report())
    monkeypatch.setattr(os, "fdopen", lambda *_, **__: Path("/dev/full").open("w"))  # noqa: SIM115
    done = edgepress("gate", tmp_path / "run", "--junit", tmp_path / "junit.xml")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"the disk of {tmp_path / 'junit.xml'} is full" in done.stderr and "Free space there, or write elsewhere" in done.stderr
