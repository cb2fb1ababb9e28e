"""Reading YAML with a line number for every key and value; nothing but plain data comes out."""

from __future__ import annotations

import os
import re
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from edgepress.targets.errors import ConfigError

#: Keys and list positions from the top of the file to a value.
Place = tuple[str | int, ...]

_MOST_NODES = 10_000
_DEEPEST = 40
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{(?P<wrong>[^}]*)\}?")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.SafeLoader("")
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Source:
    """A YAML file as plain data.

    Attributes:
        file: its path as the user gave it, for messages.
        data: dictionaries, lists, strings, numbers, booleans and None.
        lines: line (from 1) of every place; of a mapping's value, the line of its key.
        taken: items of lists that `without` took out, as places of the file.
    """

    file: str
    data: Any
    lines: dict[Place, int]
    taken: tuple[Place, ...] = ()

    def error(self, place: Place, what: str, remedy: str = "", kind: str = "invalid") -> ConfigError:
        """`file:line: a.b.c: what. remedy`, at the nearest place that has a line."""
        known = place = self.written(place)
        while known and known not in self.lines:
            known = known[:-1]
        dotted = dotted_name(place)
        line = self.lines.get(known, 1)
        return ConfigError(f"{self.file}:{line}: {dotted + ': ' if dotted else ''}{what}", remedy=remedy, kind=kind, line=line, place=place)

    def written(self, place: Place) -> Place:
        """Where a place of `data` stood in the file, before items of lists were taken out."""
        found: Place = ()
        for step in place:
            if isinstance(step, int):
                for taken in sorted(int(other[-1]) for other in self.taken if other[:-1] == found):
                    step += taken <= step
            found += (step,)
        return found

    def without(self, place: Place) -> Source | None:
        """The source less what stood at `place` in the file, whose lines and names it keeps; None where nothing is there any more."""
        data = inner = deepcopy(self.data)
        steps = [self._now(place[: i + 1]) for i in range(len(place))]
        try:
            for step in steps[:-1]:
                inner = inner[step]
            del inner[steps[-1]]
        except (KeyError, IndexError, TypeError):
            return None
        return Source(self.file, data, self.lines, (*self.taken, place) if isinstance(place[-1], int) else self.taken)

    def _now(self, place: Place) -> str | int:
        """The last step of a place in the file, in `data`."""
        last = place[-1]
        if not isinstance(last, int):
            return last
        return last - sum(other[:-1] == place[:-1] and int(other[-1]) < last for other in self.taken)

    def unknown(self, place: Place, known: list[str]) -> ConfigError:
        """The key at the end of `place` is none of those known there; the nearest is named."""
        return self.error(place, f"unknown key {place[-1]!r}", nearest(str(place[-1]), known), "unknown-key")


def dotted_name(place: Place) -> str:
    """`targets[2].gates.size.max`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def nearest(key: str, known: list[str]) -> str:
    """`Did you mean 'x'? Known: …`, or only the known ones where nothing is near."""
    folded = {name.lower(): name for name in known}
    near = get_close_matches(key.lower(), folded, 1, 0.6)
    return f"{f'Did you mean {folded[near[0]]!r}? ' if near else ''}Known: {', '.join(known)}."


def read(path: Path) -> Source:
    """Read one YAML file; `${VAR}` and `${VAR:-default}` in values come from the environment (`$${` is a plain `${`).

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, empty, not YAML, has a key twice or an unset variable.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise _syntax(path, text, error) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", remedy=f"At most {_DEEPEST} levels.", kind="unreadable") from None
    if node is None:
        raise ConfigError(f"{path} is empty", remedy="Run `edgepress init DIR --example digits` for a complete one.", kind="unreadable")
    walk = _Walk(str(path))
    data = walk.plain(node, (), 0)
    return Source(str(path), data, walk.lines)


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        here = path.parent if path.parent.is_dir() else Path()
        found = sorted(p.name for p in here.iterdir() if p.suffix in (".yaml", ".yml"))[:5]
        remedy = f"Found there: {', '.join(found)}." if found else "Run `edgepress init DIR --example digits` for a complete one."
        raise ConfigError(f"{path} does not exist", remedy=remedy, kind="unreadable") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
            raise ConfigError(f"{path} is not UTF-8", byte, "Save it as UTF-8.", kind="unreadable") from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read", reason or "", "Give the path of an edgepress.yaml.", kind="unreadable") from None
    return text


def _syntax(path: Path, text: str, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    line = mark.line + 1 if mark else 1
    if mark is None and isinstance(position := getattr(error, "position", None), int):
        line = text.count("\n", 0, position) + 1
    lines = text.splitlines()
    line = min(line, max(len(lines), 1))  # a file that ends too early is wrong on its last line
    shown = lines[line - 1] if lines else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())] or "\\t" in problem:
        return ConfigError(f"{path}:{line}: not valid YAML: a tab indents this line", remedy="Use spaces.", kind="unreadable", line=line)
    remedy = f"Look at: {shown.strip()[:80]!r}." if shown.strip() else "Look at the lines before it."
    return ConfigError(f"{path}:{line}: not valid YAML: {problem}", remedy=remedy, kind="unreadable", line=line)


class _Walk:
    """Turns YAML nodes into plain data and notes where each stood."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Place, int] = {}
        self._nodes = 0

    def plain(self, node: yaml.Node, place: Place, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > _MOST_NODES or depth > _DEEPEST:
            raise self._error(node, place, "too large, nested too deeply, or an alias that contains itself")
        self.lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(child, (*place, i), depth + 1) for i, child in enumerate(node.value)]
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, place, "a key is a list or a mapping", "Keys are plain words.")
            name = key.value
            inner = (*place, name)
            if name == "<<":
                raise self._error(key, place, "merge keys (`<<`) are not supported", "Write the keys out.")
            if name in result:
                first = self.lines[inner]
                raise self._error(key, place, f"the key {name!r} stands twice", f"The first one is on line {first}; keep one.")
            self.lines[inner] = key.start_mark.line + 1
            result[name] = self.plain(value, inner, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        text, tag = node.value, node.tag
        if "${" in text:
            text = self._expand(node, place)
            if not getattr(node, "style", None):
                tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
        kind = tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str" and not getattr(node, "style", None) and _SCIENTIFIC.fullmatch(text):
            return float(text)  # YAML 1.1 wants a dot in 1e-4; nobody else does
        if kind in ("str", "timestamp", "value") or (kind in ("int", "float") and ":" in text):
            return text  # a date or 12:30 is text here, not a number in base sixty
        if kind not in ("int", "float", "bool", "null"):
            raise self._error(node, place, f"the YAML tag {tag!r} is not supported", "Remove the tag.")
        try:
            return yaml.SafeLoader("").construct_object(yaml.ScalarNode(tag, text))
        except ValueError:
            return text

    def _expand(self, node: yaml.Node, place: Place) -> str:
        def value(match: re.Match[str]) -> str:
            if match.group() == "$${":
                return "${"
            name = match["name"]
            if name is None:
                raise self._error(node, place, f"{match.group()!r} is not a variable", "Write ${NAME} or ${NAME:-default}.")
            found = os.environ.get(name) or match["default"]
            if found is None:
                raise self._error(node, place, f"the environment variable {name} is not set", f"Set it, or write ${{{name}:-default}}.")
            return found

        return _VARIABLE.sub(value, node.value)

    def _error(self, node: yaml.Node, place: Place, what: str, remedy: str = "") -> ConfigError:
        return Source(self.file, None, {(): node.start_mark.line + 1}).error(place, what, remedy, "unreadable")
