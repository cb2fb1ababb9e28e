"""Which op codes of a .tflite file a TensorFlow Lite interpreter lacks. Stands alone: the standard library and nothing else.

An interpreter stops at the first op code it does not know. So each op code of the file is put to it in a model of its own, with no
tensor and no op, which the interpreter loads if and only if it has a kernel for that op code and version.
"""

from __future__ import annotations

import struct
from typing import Any

_CUSTOM = 32


def op_codes(content: bytes) -> list[tuple[int, int, str]]:
    """(builtin code, version, custom name) of every op code, read straight from the flatbuffer (schema: Model.operator_codes)."""
    model = _u32(content, 0)
    codes = _field(content, model, 1)
    if codes is None:
        return []
    codes += _u32(content, codes)
    found = []
    for i in range(_u32(content, codes)):
        item = codes + 4 + 4 * i
        entry = item + _u32(content, item)
        old, custom, version, new = (_field(content, entry, number) for number in range(4))
        code = max(content[old] if old else 0, _i32(content, new) if new else 0)
        found.append((code, _i32(content, version) if version else 1, _string(content, custom) if custom else ""))
    return found


def unsupported(content: bytes, interpreter_class: Any) -> list[dict[str, Any]]:
    """The op codes of a file that an interpreter has no kernel for: `{"op": name, "version": number}`."""
    missing = []
    for code, version, custom in op_codes(content):
        if code == _CUSTOM:
            missing.append({"op": f"custom op {custom}", "version": version})
            continue
        try:
            interpreter_class(model_content=one_code_model(code, version))
        except ValueError as error:
            name = str(error).partition("opcode '")[2].partition("'")[0]
            missing.append({"op": name or f"builtin op {code}", "version": version})
    return missing


def one_code_model(code: int, version: int) -> bytes:
    """A .tflite file whose only content is one builtin op code, which no op uses."""
    file = _Builder()
    model, (_, codes_at, graphs_at, _, buffers_at) = file.table(3, 0, 0, None, 0)  # version, op codes, subgraphs, no description, buffers
    file.point(0, model)
    codes, (code_at,) = file.vector(1)
    file.point(codes_at, codes)
    file.point(code_at, file.table(min(code, 127), None, version, code)[0])  # the old field, no custom name, version, the wide field
    graphs, (graph_at,) = file.vector(1)
    file.point(graphs_at, graphs)
    graph, lists = file.table(0, 0, 0, 0)  # tensors, inputs, outputs, ops: all empty
    file.point(graph_at, graph)
    for place in lists:
        file.point(place, file.vector(0)[0])
    buffers, (buffer_at,) = file.vector(1)
    file.point(buffers_at, buffers)
    file.point(buffer_at, file.table()[0])
    return bytes(file.content)


class _Builder:
    """Writes a flatbuffer front to back: every field takes 4 bytes, offsets are filled in once their target is written."""

    def __init__(self) -> None:
        self.content = bytearray(b"\0\0\0\0TFL3")

    def table(self, *fields: int | None) -> tuple[int, list[int]]:
        """Append a table, None for an absent field; return its place and those of its fields."""
        count = len(fields)
        start = len(self.content)
        self.content += struct.pack("<HH", 4 + 2 * count, 4 + 4 * count)
        for i, value in enumerate(fields):
            self.content += struct.pack("<H", 0 if value is None else 4 + 4 * i)
        self.content += b"\0" * (-len(self.content) % 4)
        place = len(self.content)
        self.content += struct.pack("<i", place - start) + b"".join(struct.pack("<i", value or 0) for value in fields)
        return place, [place + 4 + 4 * i for i in range(count)]

    def vector(self, count: int) -> tuple[int, list[int]]:
        """Append a vector of offsets; return its place and those of its items."""
        place = len(self.content)
        self.content += struct.pack("<I", count) + b"\0" * (4 * count)
        return place, [place + 4 + 4 * i for i in range(count)]

    def point(self, where: int, target: int) -> None:
        """Fill in an offset."""
        struct.pack_into("<I", self.content, where, target - where)


def _field(content: bytes, table: int, number: int) -> int | None:
    """Place of a table's field, None where it is absent."""
    vtable = table - _i32(content, table)
    at = 4 + 2 * number
    if at >= _u16(content, vtable):
        return None
    offset = _u16(content, vtable + at)
    return table + offset if offset else None


def _string(content: bytes, place: int) -> str:
    text = place + _u32(content, place)
    return content[text + 4 : text + 4 + _u32(content, text)].decode("utf-8", "replace")


def _u16(content: bytes, place: int) -> int:
    return int(struct.unpack_from("<H", content, place)[0])


def _u32(content: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", content, place)[0])


def _i32(content: bytes, place: int) -> int:
    return int(struct.unpack_from("<i", content, place)[0])
