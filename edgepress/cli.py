"""The command line: parses arguments, loads what a command needs and no more, turns errors into one line and an exit code.

Exit codes: 0 pass, 1 a gate failed, 2 cannot judge (usage, recipe, missing runtime, internal error), 3 undecided.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgepress.disk import FREE_SPACE, is_full, place_of
from edgepress.targets.errors import EdgepressError

INTERRUPTED = "Interrupted. Finished steps are stored; run the same command to go on."


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; interrupted, it could not judge (Typer would exit with 130, without a word)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail(INTERRUPTED)


app = typer.Typer(
    name="edgepress",
    cls=_Commands,
    help="Compress a trained PyTorch checkpoint, put it on every device, and prove that it still works.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[Path, typer.Argument(help="Recipe.", show_default=True)]
RunArgument = Annotated[Path, typer.Argument(help="Folder a run wrote.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", metavar="TARGET", help="This target alone; may be repeated.")]
DEFAULT_CONFIG = Path("edgepress.yaml")
LATEST = Path("runs/latest")

baselines = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The accepted release that later runs are held to.")
app.add_typer(baselines, name="baseline")


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from edgepress import __version__

        typer.echo(f"edgepress {__version__}")
        raise typer.Exit


@app.command(epilog="Example: edgepress init my-project --example digits")
def init(
    folder: Annotated[Path, typer.Argument(help="New project folder.")],
    example: Annotated[str | None, typer.Option(help="Write a complete example: digits.")] = None,
) -> None:
    """Write a starter project: edgepress.yaml, model.py, data.py, and with --example a trained checkpoint."""
    from edgepress.starter import write_starter

    for path in write_starter(folder, example):
        typer.echo(path)


@app.command(epilog="Example: edgepress run edgepress.yaml --only onnxruntime --out runs/today")
def run(
    config: ConfigArgument = DEFAULT_CONFIG,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and the bundle. Default: runs/<time>, linked as runs/latest.")
    ] = None,
    only: OnlyOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Steps at a time. Default: one per core.")] = None,
    fresh: Annotated[bool, typer.Option(help="Run every step again, whatever is stored.")] = False,
    baseline_artifacts: Annotated[
        Path | None, typer.Option(help="Folder with the accepted release's bundle: its artifacts are timed beside the new ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compress, export, validate and judge; write the report and a bundle per target."""
    from edgepress.commands.run import run_recipe
    from edgepress.engine import RunOptions

    raise typer.Exit(run_recipe(config, only or [], RunOptions(out, jobs, fresh, baseline_artifacts), as_json))


@app.command(epilog="Example: edgepress plan edgepress.yaml")
def plan(config: ConfigArgument = DEFAULT_CONFIG, only: OnlyOption = None, as_json: JsonOption = False) -> None:
    """Show the steps of a run, which are stored, and why the others are not. Runs nothing."""
    from edgepress.commands.run import show_plan

    show_plan(config, only or [], as_json)


@app.command(epilog="Example: edgepress check edgepress.yaml --sarif edgepress.sarif")
def check(
    config: ConfigArgument = DEFAULT_CONFIG,
    sarif: Annotated[Path | None, typer.Option(help="Also write the findings as SARIF 2.1.0 here.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print the findings as GitHub annotations.")] = False,
) -> None:
    """Find what is wrong with a recipe, all at once and before a run; exits as the run would at best."""
    from edgepress.commands.check import check_recipe

    raise typer.Exit(check_recipe(config, sarif, github))


@app.command(epilog="Example: edgepress gate runs/latest --undecided pass --junit junit.xml")
def gate(
    run_dir: Annotated[Path | None, typer.Argument(help="Folder a run wrote; with --plan a recipe. Default: runs/latest.")] = None,
    undecided: Annotated[
        str | None, typer.Option(help="Exit code of an undecided verdict: fail (1), warn or pass (0). Default: 3.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit file here.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print GitHub annotations and add the table to the step summary (GITHUB_STEP_SUMMARY).")
    ] = False,
    gitlab: Annotated[
        Path | None, typer.Option(help="Also write a GitLab Code Quality file here, and metrics.txt (OpenMetrics) beside it.")
    ] = None,
    metrics: Annotated[Path | None, typer.Option(help="Write the OpenMetrics file here.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Before a run: score the float model and say which drops the validation samples can decide.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Judge `against_baseline` by this file. Default: by the one the run was judged by.")
    ] = None,
    waivers: Annotated[Path | None, typer.Option(help="File with `waivers:`, in place of the recipe's.")] = None,
) -> None:
    """Judge a run again by its report, without running anything: the verdict is the exit code."""
    from edgepress.commands.judge import judge_again
    from edgepress.commands.plan_gates import show_gate_plan
    from edgepress.commands.publish import Outputs

    if plan_only:
        raise typer.Exit(show_gate_plan(run_dir or DEFAULT_CONFIG))
    raise typer.Exit(judge_again(run_dir or LATEST, undecided, Outputs(junit, github, gitlab, metrics), baseline, waivers))


@baselines.command(epilog='Example: edgepress baseline accept runs/latest --reason "release 1.4"')
def accept(
    reason: Annotated[str, typer.Option(help="Why; kept in the file.")],
    run_dir: RunArgument = LATEST,
    file: Annotated[Path | None, typer.Option(help="The baseline. Default: the one the recipe of the run looks for.")] = None,
    by: Annotated[str | None, typer.Option(help="Who. Default: git's user.name, else the login name.")] = None,
    allow_verdict: Annotated[
        str | None, typer.Option(metavar="VERDICT", help="Accept a run that is undecided or fail, too; kept in the file.")
    ] = None,
    ratchet: Annotated[
        bool | None, typer.Option(help="Refuse a run of which any figure is worse than the baseline's. Default: as the recipe says.")
    ] = None,
) -> None:
    """Write a run's figures into the file that later runs are compared with, for review in the repository."""
    from edgepress.commands.baseline import accept_run

    accept_run(run_dir, reason, file, by, allow_verdict, ratchet)


@app.command(epilog="Example: edgepress bench runs/new/bundle/tflite --against runs/old/bundle/tflite")
def bench(
    artifact: Annotated[Path, typer.Argument(help="A target's folder in a bundle, or its artifact there.")],
    against: Annotated[Path, typer.Option(help="The folder or artifact to compare with.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Time two artifacts of one runtime in interleaved pairs and print the ratio with its interval."""
    from edgepress.commands.bundle import time_pair

    time_pair(artifact, against, threads, as_json)


@app.command(epilog="Example: edgepress explain runs/latest tflite")
def explain(
    run_dir: Annotated[str | None, typer.Argument(help="Folder a run wrote. Default: runs/latest.")] = None,
    target: Annotated[str | None, typer.Argument(help="A target of the run; needed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the accuracy went, stage by stage, slice by slice, layer by layer; where the time; and what stayed in float."""
    from edgepress.commands.judge import show_explanation

    named = (Path(run_dir), target) if run_dir and target else (LATEST, run_dir)  # one name is the target's
    show_explanation(*named, as_json)


@app.command(epilog="Example: edgepress verify runs/latest/bundle --key release.pub --inputs live.npz")
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or the run that holds one.")] = LATEST,
    key: Annotated[Path | None, typer.Option(help="Public key (PEM) that must have signed it.")] = None,
    identity: Annotated[str | None, typer.Option(help="Identity that must have signed it without a key.")] = None,
    issuer: Annotated[str | None, typer.Option(help="OpenID Connect provider of that identity.")] = None,
    trust_config: Annotated[Path | None, typer.Option(help="Sigstore's trust root as a file; nothing is fetched.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Live inputs (.npz) to compare with calibration's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Re-hash every file of a bundle, check its signature, replay its golden samples, and tell whether inputs drifted."""
    from edgepress.commands.bundle import asked_of, verify_bundle

    raise typer.Exit(verify_bundle(bundle, asked_of(key, identity, issuer, trust_config, inputs), as_json))


@app.command(epilog="Example: edgepress sign runs/latest/bundle --key release.pem")
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or the run that holds one.")] = LATEST,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM, P-256, P-384 or P-521).")] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Sign with this CI job's identity through sigstore. Uses the network.")
    ] = False,
    trust_config: Annotated[Path | None, typer.Option(help="With --keyless, a sigstore of your own (ClientTrustConfig JSON).")] = None,
) -> None:
    """Sign every file of a bundle in the OpenSSF model-signing format: model.sig beside them."""
    from edgepress.commands.bundle import sign_bundle

    sign_bundle(bundle, key, keyless, trust_config)


@app.command(epilog="Example: edgepress diff runs/yesterday runs/latest")
def diff(run_a: RunArgument, run_b: RunArgument, html: Annotated[Path | None, typer.Option(help="Also write a page here.")] = None) -> None:
    """Compare two runs target by target."""
    from edgepress.commands.judge import show_diff

    show_diff(run_a, run_b, html)


@app.command(epilog="Example: edgepress trend runs --html trend.html")
def trend(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the folders of runs.", show_default=True)] = Path("runs"),
    html: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("trend.html"),
) -> None:
    """Draw drop, latency and size of every target over many runs, as a page."""
    from edgepress.commands.judge import show_trend

    show_trend(folder, html)


@app.command(epilog="Example: edgepress targets")
def targets(as_json: JsonOption = False) -> None:
    """List the catalog: device, runtime, file, precisions, and what is usable here."""
    from edgepress.commands.machine import show_targets

    show_targets(as_json)


@app.command(epilog="Example: edgepress doctor --install tflite-runtime")
def doctor(
    install: Annotated[str | None, typer.Option(help="Install a runtime that needs an environment of its own: tflite-runtime.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, what works on this machine, and how to get the rest."""
    from edgepress.commands.machine import check_machine

    check_machine(install, as_json)


def main() -> None:
    """Entry point of the `edgepress` command."""
    debug = "--debug" in sys.argv[1:]
    if debug:  # accepted anywhere on the line, as people type it
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a CI system: children end too
    try:
        app()
    except EdgepressError as error:
        if debug:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(INTERRUPTED)
    except OSError as error:
        if debug:
            raise
        place = place_of(error) or "while writing"
        if is_full(error):
            _fail(f"the disk of {place} is full: {error.strerror}. {FREE_SPACE}")
        _fail(f"{error.strerror or error}: {place}. Check the path and its permissions.")
    except Exception as error:  # a fault of our own: one line, with the way to the traceback
        if debug:
            raise
        _fail(f"internal error: {type(error).__name__}: {error}. Run again with --debug and report what it shows.")


def _fail(message: str) -> NoReturn:
    style = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{style[0]}error:{style[1]} {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
