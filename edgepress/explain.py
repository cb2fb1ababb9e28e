"""Which layers of a target lost most: one more step after those that made its artifact, run when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepress.bundle.digest import digest
from edgepress.config import Config, TargetPlan, load, recipe
from edgepress.engine import open_store, single_steps
from edgepress.pipeline import Pipeline
from edgepress.results import Prepared
from edgepress.step import Listener, Lookup, Result, Step
from edgepress.target_steps import TargetSteps
from edgepress.targets.errors import EdgepressError

Json = Mapping[str, Any]

#: What a report calls the model that a file was made of where that is a rendering in integers.
_RENDERED = "quantized PyTorch model"


def layers_of(report: Json, target: Json, listener: Listener) -> dict[str, Any]:
    """Compare every layer of the float model with the same one in a target's integers.

    The run's steps are looked up in the store of its recipe; none of them is done again, and the run is left as it is.

    Args:
        report: of a run.
        target: one of its targets.
        listener: told about the step, where it is not stored yet.

    Returns:
        `layers`: what `steps.blame.layers` says of each, the one that lost most first; `samples` they were compared on; `why` there are
        none, None where there are.
    """
    try:
        return {**_measured(report, target, listener).value, "why": None}
    except EdgepressError as error:
        return {"layers": [], "samples": 0, "why": str(error)}


def _measured(report: Json, target: Json, listener: Listener) -> Result:
    _check_rendered(target)
    path = Path(report["recipe"]) if report.get("recipe") else None
    if path is None or not path.is_file():
        raise EdgepressError(f"the recipe {str(path)!r} is not here", "", "Go to the folder in which the run was started.")
    config = load(path)
    plan = next((plan for plan in recipe(config) if plan.target.name == target["name"]), None)
    if plan is None:
        raise EdgepressError(f"the recipe has no target {target['name']!r} any more", "it changed since the run", "Run it again.")
    store = open_store(config)
    export, prepared = _made(config, plan, target, Lookup(store, report["environment"]["fingerprint"]))
    with single_steps(config, store, listener) as runner:
        return TargetSteps(config, runner.do).layers(plan, prepared, export)


def _check_rendered(target: Json) -> None:
    """Was the file made of a model that PyTorch can run beside the float one?

    Raises:
        EdgepressError: it was not.
    """
    if target["error"] or not target["parity"]:
        raise EdgepressError(f"{target['name']!r} has no artifact")
    if target["scheme"]["kind"] == "float":
        raise EdgepressError(f"{target['name']!r} is {target['scheme']['label']}", "nothing in it was quantized")
    if target["parity"].get("against") != _RENDERED:
        label = target["scheme"]["label"]
        raise EdgepressError(f"the runtime's own tool made {label} of the float model", "PyTorch has no model with its integers")


def _made(config: Config, plan: TargetPlan, target: Json, lookup: Lookup) -> tuple[Step, Prepared]:
    """The step that exported a target's artifact, and what it was made of.

    Raises:
        EdgepressError: the store does not have it, or has another one by now.
    """
    pipeline = Pipeline(config, [plan], lookup)
    prepared = pipeline.prepare()
    run = pipeline.compress(plan, prepared)
    export = run.chosen.export if run.chosen else None
    if export is None or digest(export.folder / "artifact" / export.value["artifact"]["path"]) != target["artifact"]["sha256"]:
        why = lookup.lost() or "the recipe, the project or the results changed since"
        raise EdgepressError("the store does not have this run's artifact any more", why, "Run the recipe again.")
    return lookup.steps[export.digest], prepared
