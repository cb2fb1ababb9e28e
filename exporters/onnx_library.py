"""onnxscript's library of operators without parsing it.

To lower a program, torch asks each of the library's 500 functions for its domain, and onnxscript parses a function's source to say it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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
