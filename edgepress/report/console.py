"""Everything a command prints on stdout, one function per command."""

from __future__ import annotations

from edgepress.report.explanation import print_explanation
from edgepress.report.outcome import print_run
from edgepress.report.tables import (
    print_diff,
    print_doctor,
    print_gate_plan,
    print_plan,
    print_targets,
    print_verification,
)

__all__ = [
    "print_diff",
    "print_doctor",
    "print_explanation",
    "print_gate_plan",
    "print_plan",
    "print_run",
    "print_targets",
    "print_verification",
]
