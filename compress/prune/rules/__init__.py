"""How labels go through operators: one function per family of operators, found by the operator's name."""

from edgepress.compress.prune.rules import (
    attention,
    contraction,
    convolution,
    elementwise,
    factory,
    norm,
    pieces,
    recurrent,
    reduction,
    shape,
)
from edgepress.compress.prune.rules.registry import RULES, Rule, rule

__all__ = [
    "RULES",
    "Rule",
    "attention",
    "contraction",
    "convolution",
    "elementwise",
    "factory",
    "norm",
    "pieces",
    "recurrent",
    "reduction",
    "rule",
    "shape",
]
