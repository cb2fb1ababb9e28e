"""Draw the two pictures of the README from a finished run:  python docs/make_pictures.py demo/run  (needs chromium)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from edgepress.report.console import print_run

DOCS = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """A screenshot of a page, in pixels."""
    with tempfile.TemporaryDirectory() as profile:
        size, target = f"--window-size={width},{height}", f"--screenshot={picture}"
        subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", size, target, page.as_uri()], check=True, capture_output=True, timeout=60
        )


def terminal(run_dir: Path) -> None:
    """What `edgepress run` prints at its end."""
    console = Console(record=True, width=96, force_terminal=True, file=io.StringIO())
    print_run(json.loads((run_dir / "report.json").read_text()), Path("demo/run"), console)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.svg"
        page.write_text(console.export_svg(title="edgepress run"))
        lines = page.read_text().count("clip-path=") // 2
        shoot(page, DOCS / "terminal.png", 1200, 90 + 25 * max(lines // 2, 26))


if __name__ == "__main__":
    run = Path(sys.argv[1]).resolve()
    shoot(run / "report.html", DOCS / "report.png", 1280, 1500)
    terminal(run)
