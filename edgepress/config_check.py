"""Checking a mapping of edgepress.yaml against its model, with messages that name file, line, value and what to write."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from edgepress.config_models import PATTERNS, Strict, keys_of, model_of
from edgepress.config_yaml import Place, Source
from edgepress.quantities import QuantityError
from edgepress.targets.errors import ConfigError

M = TypeVar("M", bound=Strict)

_KINDS = {
    "int_type": ("a whole number", "Write e.g. 4, without quotes."),
    "int_from_float": ("a whole number", "Write e.g. 4."),
    "float_type": ("a number", "Write e.g. 0.95, without quotes."),
    "string_type": ("text", "Write it in quotes."),
    "bool_type": ("true or false", "Write true or false."),
    "list_type": ("a list", "Write one entry per line, each after a dash."),
    "tuple_type": ("a list", "Write one entry per line, each after a dash."),
    "dict_type": ("a mapping", "Write `key: value` pairs."),
}


#: Keys whose lists are tuples of a model, or that lead to one.
_NESTED = ("model", "inputs", "outputs", "bundle", "layouts")


def build(model: type[M], data: Any, source: Source, place: Place, extra: Mapping[str, str] | None = None) -> M:
    """Turn the mapping at `place` into `model`; nothing at all (`None`) stands for an empty mapping.

    Args:
        model: the mapping's model.
        data: plain data.
        source: the file, for messages.
        place: where `data` stands.
        extra: further keys that are allowed here and read elsewhere.

    Raises:
        ConfigError: an unknown key (the nearest is named), a missing one, a wrong type, unit or range.
    """
    data = {} if data is None else data
    _known_keys(model, data, source, place, dict(extra or {}))
    try:
        return model.model_validate(_lists_as_tuples({k: v for k, v in data.items() if k not in (extra or {})}))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        problems.sort(key=lambda p: source.lines.get(source.written(_stands(source, (*place, *p["loc"]))), 1))
        raise _explain(model, problems[0], source, place) from None


def _known_keys(model: type[Strict], data: Any, source: Source, place: Place, extra: Mapping[str, str]) -> None:
    keys = [*keys_of(model), *extra]
    if not isinstance(data, dict):
        raise source.error(place, f"{_shown(data)} is not a mapping", f"Keys here: {', '.join(keys)}.")
    for key, value in data.items():
        if key not in keys:
            raise source.unknown((*place, key), keys)
        if key in extra:
            continue
        inner = model_of(model.model_fields[key].annotation)
        if inner is not None and isinstance(value, dict):
            _known_keys(inner, value, source, (*place, key), {})
        elif inner is not None and value is None and model.model_fields[key].is_required():
            raise source.error((*place, key), f"{key!r} is empty", f"Keys here: {', '.join(keys_of(inner))}.")
        elif inner is not None and isinstance(value, list):
            for i, item in enumerate(value):
                _known_keys(inner, item, source, (*place, key, i), {})


def _lists_as_tuples(data: Any) -> Any:
    """Pydantic's strict mode takes no list for a tuple; an empty mapping value stands for its defaults."""
    if isinstance(data, dict):
        return {key: _lists_as_tuples(value) if key in _NESTED else value for key, value in data.items()}
    return tuple(data) if isinstance(data, list) else data


def _explain(model: type[Strict], problem: Any, source: Source, base: Place) -> ConfigError:
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    place: Place = _stands(source, (*base, *problem["loc"]))
    if kind == "missing":
        name = str(problem["loc"][-1])
        return source.error((*base, *problem["loc"][:-1]), f"the key {name!r} is missing", f"Add `{name}:`.")
    if kind == "value_error" and isinstance(error := context.get("error"), QuantityError):
        return source.error(place, error.what, error.remedy)
    if kind == "value_error":
        what, _, remedy = str(context.get("error", problem["msg"])).partition("|")
        return source.error(place, what, remedy)
    if kind == "literal_error":
        return source.error(place, *_literal(value, context["expected"]))
    if kind == "string_pattern_mismatch":
        what, remedy = PATTERNS[context["pattern"]]
        return source.error(place, f"{_shown(value)} {what}", remedy)
    if kind in _KINDS:
        wanted, remedy = _KINDS[kind]
        return source.error(place, f"{_shown(value)} is not {wanted}", remedy)
    if kind in ("model_type", "model_attributes_type"):
        inner = _model_at(model, problem["loc"])
        return source.error(place, f"{_shown(value)} is not a mapping", f"Keys here: {', '.join(keys_of(inner))}." if inner else "")
    return source.error(place, f"{_shown(value)} is out of range", f"{problem['msg'].replace('Input should', 'It should')}.")


def _literal(value: Any, expected: str) -> tuple[str, str]:
    known = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    near = get_close_matches(value.lower(), known, 1, 0.5) if isinstance(value, str) else []
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{_shown(value)} is not known", f"{guess}Write one of: {', '.join(known)}."


def _stands(source: Source, place: Place) -> Place:
    """The part of a pydantic location that exists in the file (unions add names of their own)."""
    while place and source.written(place) not in source.lines:
        place = place[:-1]
    return place


def _model_at(model: type[Strict] | None, place: Place) -> type[Strict] | None:
    for step in place:
        if isinstance(step, str) and model is not None and step in model.model_fields:
            model = model_of(model.model_fields[step].annotation)
    return model


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else "nothing" if value is None else f"'{value}'"
    return text if len(text) <= 80 else f"{text[:77]}…'"
