"""`edgepress gate --plan`."""

from __future__ import annotations

from pathlib import Path

from edgepress.commands.run import load_recipe
from edgepress.engine import score_original
from edgepress.gate_plan import plan_gates, smallest_drops
from edgepress.live import Live


def show_gate_plan(path: Path) -> int:
    """Score the float original and show what its validation samples can decide.

    Returns:
        0 where they decide every accuracy gate of the recipe, 3 where they do not.

    Raises:
        EdgepressError: the recipe, the project or its metric cannot be used.
    """
    from edgepress.report.console import print_gate_plan

    config, plans = load_recipe(path, [])
    with Live() as live:
        original = score_original(config, live)
    planned = plan_gates(plans, original)
    print_gate_plan(original, planned, smallest_drops(original, planned[0].confidence))
    return 0 if all(gate.decidable for gate in planned) else 3
