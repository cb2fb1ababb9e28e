"""The ready-made CI files: valid by the hosts' own schemas, and what they run works in a clean environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgepress.report.write import dump
from tests.project import digits
from tests.report_sample import report, target

ROOT = Path(__file__).parent.parent
ACTION, WORKFLOW, JOB = ROOT / "action.yml", ROOT / "examples/ci/github-workflow.yml", ROOT / "examples/ci/gitlab-ci.yml"
Json = dict[str, Any]


def loaded(path: Path) -> Json:
    content: Json = yaml.safe_load(path.read_text())
    return content


def steps(path: Path) -> list[Json]:
    """The steps of the action or of the workflow's only job."""
    content = loaded(path)
    found: list[Json] = content["runs"]["steps"] if "runs" in content else content["jobs"]["gate"]["steps"]
    return found


def commands(path: Path) -> Iterator[tuple[str, Json]]:
    """Every script of a file, with the variables it is given."""
    if path == JOB:
        job = loaded(path)["edgepress"]
        yield "\n".join(job["before_script"] + job["script"]), {}
        return
    for step in steps(path):
        if "run" in step:
            yield step["run"], step.get("env", {})


@pytest.mark.parametrize(
    ("path", "schema"), [(ACTION, "github-actions"), (WORKFLOW, "github-workflows"), (JOB, "gitlab-ci")], ids=["action", "github", "gitlab"]
)
def test_the_file_follows_its_hosts_schema(path: Path, schema: str) -> None:
    from check_jsonschema import main
    from click.testing import CliRunner

    done = CliRunner().invoke(main, ["--builtin-schema", f"vendor.{schema}", str(path)])
    assert done.exit_code == 0 and "ok" in done.output, done.output


@pytest.mark.parametrize("path", [ACTION, WORKFLOW, JOB], ids=["action", "github", "gitlab"])
def test_the_extras_and_the_version_of_torch_that_are_installed_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(script for script, _ in commands(path))
    assert "pip install torch==2.13.0" in text and "torch>=2.13,<2.14" in project["dependencies"]
    named = re.search(r"edgepress\[([a-z,]+)\]", text)
    extras = named[1] if named else loaded(path)["inputs"]["extras"]["default"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("path", [ACTION, WORKFLOW], ids=["action", "github"])
def test_no_expression_stands_in_a_script(path: Path) -> None:
    """What a caller passes in is read from the environment, where a shell does not execute it."""
    assert all("${{" not in script for script, _ in commands(path))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("edgepress_numpy")
    folder = tmp_path_factory.mktemp("repository")
    digits(folder)
    (folder / ".git").mkdir()
    return folder


def execute(path: Path, folder: Path) -> tuple[int, str]:
    """Run a file's scripts one after the other as its host does, up to the first that fails; `pip` lines are checked elsewhere.

    Nothing of the caller's environment is there but where programs and, in a checkout, modules are found.
    """
    clean = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]), "HOME": str(folder), "CI": "true"}
    clean |= {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    if path != JOB:
        files = {name: str(folder / name.lower()) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        clean |= {**files, "GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(folder)}
        for name in files.values():
            Path(name).unlink(missing_ok=True)
    printed = ""
    for script, variables in commands(path):
        lines = [line for line in script.splitlines() if "pip install" not in line]
        given = {name: resolved(str(value), path) for name, value in variables.items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", "\n".join(lines) or ":"]
        done = subprocess.run(command, cwd=folder, env=clean | given, capture_output=True, text=True, timeout=300)
        printed += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, printed
    return 0, printed


def resolved(value: str, path: Path) -> str:
    """A variable's value with the action's defaults in place of its inputs."""
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: str(loaded(path)["inputs"][match[1]]["default"]), value)


@pytest.mark.parametrize("path", [ACTION, WORKFLOW, JOB], ids=["action", "github", "gitlab"])
def test_a_sound_project_passes_and_leaves_what_the_host_collects(path: Path, project: Path) -> None:
    code, printed = execute(path, project)
    assert code == 0, printed
    assert (project / "runs/ci/report.json").is_file() and "::error" not in printed
    for name in collected(path):
        assert (project / name).exists(), name
    if path != JOB:
        assert (project / "github_step_summary").read_text().startswith("## digits: PASS")
    if path == ACTION:
        assert (project / "github_output").read_text() == "exit-code=0\n"


def collected(path: Path) -> list[str]:
    """The files that a host picks up."""
    if path == JOB:
        artifacts = loaded(path)["edgepress"]["artifacts"]
        return [*artifacts["paths"], *artifacts["reports"].values()]
    given = [step["with"] for step in steps(path) if re.search("upload", step.get("uses", ""))]
    return [resolved(item.get("path") or item["sarif_file"], path) for item in given]


@pytest.mark.parametrize("path", [ACTION, WORKFLOW, JOB], ids=["action", "github", "gitlab"])
def test_a_missed_goal_fails_the_job_and_is_shown_where_it_was_asked_for(path: Path, project: Path) -> None:
    recipe = project / "edgepress.yaml"
    before = recipe.read_text()
    content = yaml.safe_load(before)
    content["gates"]["size"]["max"] = "1kB"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    line = next(number for number, text in enumerate(recipe.read_text().splitlines(), 1) if text.strip() == "size:")
    try:
        code, printed = execute(path, project)
    finally:
        recipe.write_text(before)
    assert code == 1, printed
    if path == JOB:
        (issue,) = json.loads((project / "gl-code-quality-report.json").read_text())
        assert issue["location"] == {"path": "edgepress.yaml", "lines": {"begin": line}}
    else:
        assert f"\n::error file=edgepress.yaml,line={line},title=edgepress%3A numpy%3A size failed::" in printed
        assert "## digits: FAIL" in (project / "github_step_summary").read_text()


@pytest.mark.parametrize("path", [ACTION, WORKFLOW, JOB], ids=["action", "github", "gitlab"])
def test_a_run_that_breaks_is_not_judged_by_an_earlier_report(path: Path, project: Path) -> None:
    """The recipe is sound, the checkpoint is cut: nothing is written, and the report of the last run must not be found."""
    (project / "runs/ci").mkdir(parents=True, exist_ok=True)
    (project / "runs/ci/report.json").write_text(dump(report(target("numpy"))))
    checkpoint = project / "digits.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:100])
    try:
        code, printed = execute(path, project)
    finally:
        checkpoint.write_bytes(whole)
    assert code == 2 and "is truncated or corrupt" in printed and "holds no report.json" in printed, printed
