"""What counts as read by a step: the project's files, whoever opens them, and nothing that another run does in its store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgepress.tracking import FileTracker


@pytest.mark.skipif(sys.platform != "linux", reason="opens by other code are seen by inotify, which Linux has")
def test_a_store_in_the_project_is_not_read_by_a_step_beside_it(tmp_path: Path) -> None:
    image, artifact = tmp_path / "images" / "a.png", tmp_path / "store" / "tmp" / "step" / "model.onnx"
    for path in (image, artifact, tmp_path / "store" / "objects" / "key" / "record.json", tmp_path / "store" / "steps" / "mark"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    tracker = FileTracker(tmp_path)
    subprocess.run(["cat", str(image), str(artifact)], check=True, capture_output=True)
    files, _ = tracker.stop()
    assert files == [str(image)]
