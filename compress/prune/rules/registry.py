"""The table of propagation rules: operator name -> function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from edgepress.compress.prune.flow import Flow

#: A rule labels the result of one call: it unifies or pins what the operator ties together, records the changes of shape constants,
#: and returns the dimensions of the result (a list of them for an operator with several). `Misfit` pins the whole call.
Rule = Callable[[Flow, Node], Any]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name, without overload ("conv2d")."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has two rules: {RULES[name].__qualname__} and {function.__qualname__}")
            RULES[name] = function
        return function

    return register
