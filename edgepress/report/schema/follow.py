"""Does a value follow a schema? The keywords of JSON Schema (draft 2020-12) that the published schemas use, and no others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    "integer": lambda value: not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())),
}


def violations(schema: Json, value: Any) -> Iterator[str]:
    """What in `value` does not follow `schema`, each as `where: what`; none where it does."""
    return _check(schema, value, "", schema)


def _check(schema: Json, value: Any, where: str, root: Json) -> Iterator[str]:
    if "$ref" in schema:
        yield from _check(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, where, root)
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_TYPES[name](value) for name in types):
            yield f"{where or 'it'} is {_shown(value)}, not {' or '.join(types)}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {_shown(value)}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {_shown(value)}, not one of {', '.join(map(str, schema['enum']))}"
    yield from _combined(schema, value, where, root)
    if isinstance(value, dict):
        yield from _object(schema, value, where, root)
    elif isinstance(value, list):
        yield from _array(schema, value, where, root)
    elif isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            yield f"{where} is empty"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where} is {_shown(value)}"
    elif isinstance(value, int | float):
        inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        if not inside or value <= schema.get("exclusiveMinimum", -math.inf):
            yield f"{where} is {value}, out of range"


def _combined(schema: Json, value: Any, where: str, root: Json) -> Iterator[str]:
    for inner in schema.get("allOf", ()):
        yield from _check(inner, value, where, root)
    for word in ("anyOf", "oneOf"):
        tries = [list(_check(inner, value, where, root)) for inner in schema.get(word, ())]
        passed = sum(not found for found in tries)
        if tries and (passed == 0 or (word == "oneOf" and passed > 1)):
            yield min((found for found in tries if found), key=len)[0]
    if "not" in schema and not any(_check(schema["not"], value, where, root)):
        yield f"{where} is {_shown(value)}"
    if "if" in schema:
        holds = not any(_check(schema["if"], value, where, root))
        yield from _check(schema.get("then" if holds else "else", {}), value, where, root)


def _object(schema: Json, value: Mapping[str, Any], where: str, root: Json) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where or 'it'} has no {name!r}"
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        yield f"{where} has {len(value)} entries"
    known = schema.get("properties", {})
    for name, item in value.items():
        inner = known.get(name, schema.get("additionalProperties", {}))
        yield from _check(inner, item, f"{where}.{name}" if where else name, root)


def _array(schema: Json, value: list[Any], where: str, root: Json) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        yield f"{where} has {len(value)} items"
    first = schema.get("prefixItems", ())
    for place, item in enumerate(value):
        inner = first[place] if place < len(first) else schema.get("items", {})
        yield from _check(inner, item, f"{where}[{place}]", root)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
