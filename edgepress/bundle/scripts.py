"""The run.py of a bundle: loads the artifact and runs it with its runtime and numpy alone."""

from __future__ import annotations

from importlib.resources import files

from edgepress.targets.errors import ConfigError
from edgepress.targets.nouns import Artifact


def run_script(runtime: str, artifact: Artifact) -> str:
    """The text of run.py.

    edgepress brings one for each runtime of its own; a third party's comes from its Runtime class (`run_script: Path | None`). Without
    either, the script says what is missing.
    """
    shipped = files("edgepress.bundle").joinpath("templates", f"run_{runtime}.py")
    if shipped.is_file():
        return shipped.read_text("utf-8")
    brought = getattr(_runtime_class(runtime), "run_script", None)
    if brought is not None:
        return str(brought.read_text("utf-8"))
    generic = files("edgepress.bundle").joinpath("templates", "without_runtime.py").read_text("utf-8")
    return generic.replace("@RUNTIME@", runtime).replace("@ARTIFACT@", artifact.path)


def _runtime_class(runtime: str) -> object:
    from edgepress.validators.runtimes import RUNTIMES

    try:
        return RUNTIMES.get(runtime)
    except ConfigError:
        return None
