"""onnxscript's library of operators without parsing it, and its rules of rewriting without trying each on every node.

To lower a program, torch asks each of the library's 500 functions for its domain, and onnxscript parses a function's source to say it.
To optimize what came of it, onnxscript tries each of its rules on every node; most say which operator they rewrite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any


@contextlib.contextmanager
def library_unparsed() -> Iterator[None]:
    """While this lasts, functions of the library say their domain at once, and are parsed when asked for more."""
    from onnxscript import values

    kind = getattr(values, "TracedOnnxFunction", None)
    parse = getattr(kind, "function_ir", None)
    if kind is None or not isinstance(parse, property) or parse.fget is None:  # another onnxscript: it does what it does
        yield
        return
    original: Callable[[Any], Any] = parse.fget
    kind.function_ir = property(lambda function: _Signature(function, original))
    try:
        yield
    finally:
        kind.function_ir = parse


@contextlib.contextmanager
def rules_by_operator() -> Iterator[None]:
    """While this lasts, a rule is tried on nodes of the operator that it is for, where it names one."""
    from onnxscript.rewriter import RewriteRule

    original = getattr(RewriteRule, "try_rewrite", None)
    if original is None:  # another onnxscript
        yield
        return

    @wraps(original)
    def tried(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        pattern: Any = getattr(rule, "_target_pattern", None)
        if not any(options.values()) and getattr(pattern, "has_single_output_node", False):
            operator = pattern.output_node.op_identifier()
            if operator is not None and operator[:2] != (node.domain, node.op_type):
                return None
        return original(rule, model, graph, node, **options)

    RewriteRule.try_rewrite = tried
    try:
        yield
    finally:
        RewriteRule.try_rewrite = original


class _Signature:
    """Stands for the parsed signature of a function."""

    def __init__(self, function: Any, parse: Callable[[Any], Any]) -> None:
        self._function, self._parse = function, parse

    @property
    def domain(self) -> str:
        """Of the function: its opset's."""
        return str(self._function.opset.domain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parse(self._function), name)
