"""The environment of its own that tflite-runtime 2.14 lives in, because it needs numpy < 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgepress.targets.errors import RuntimeUnavailable

VERSION = "2.14.0"
PACKAGES = (f"tflite-runtime=={VERSION}", "numpy<2")
COMMAND = "edgepress doctor --install tflite-runtime"
#: Python versions with a wheel of tflite-runtime 2.14, newest first.
PYTHONS = ("3.11", "3.10", "3.9")
_PIP_SECONDS = 600


def environment() -> Path:
    """Where it is or will be: under `EDGEPRESS_ENVS`, else the user's cache folder."""
    root = os.environ.get("EDGEPRESS_ENVS")
    if root:
        return Path(root) / f"tflite-runtime-{VERSION}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgepress" / "envs" / f"tflite-runtime-{VERSION}"


def interpreter(folder: Path | None = None) -> Path:
    """The Python of the environment (which may not exist yet)."""
    folder = folder or environment()
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def installed() -> bool:
    """Is the environment there? It appears whole or not at all."""
    return interpreter().exists()


def install() -> Path:
    """Make the environment if it is not there: a venv with tflite-runtime 2.14 and numpy < 2, from the package index pip is set to.

    It is built under a temporary name beside its place and renamed, so that a half-made one is never found.

    Returns:
        The environment's folder.

    Raises:
        RuntimeUnavailable: no Python with a wheel of it here, or pip failed.
    """
    place = environment()
    if installed():
        return place
    python = _python()
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        _call([python, "-m", "venv", str(partial)], "a virtual environment could not be made")
        pip = [str(interpreter(partial)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *PACKAGES]
        _call(pip, "pip could not install tflite-runtime")
        _call([str(interpreter(partial)), "-c", "import tflite_runtime.interpreter"], "tflite-runtime was installed and does not load")
        try:
            partial.rename(place)
        except OSError:
            if not installed():  # else another process was faster; its environment is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _python() -> str:
    """This Python where it has a wheel, else the newest on the path that has."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        found = shutil.which(f"python{version}")
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise RuntimeUnavailable(
        f"tflite-runtime {VERSION} has no wheel for Python {here}",
        f"it was built for {', '.join(reversed(PYTHONS))}, and none of these is on the path",
        f"Install one of them, then run: {COMMAND}",
    )


def _call(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(what, f"no answer in {_PIP_SECONDS} s", "Check the network and the package index.") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise RuntimeUnavailable(what, errors[-1][:300], f"Check the network and the package index, then run: {COMMAND}")
