"""What a TensorRT-RTX engine says of itself.

The format is undocumented. The part read here is a text inside the engine, behind the marker `NLYM`: tensors with their types, and the
statements that use them. Whatever cannot be read is left out, and nothing here raises on any bytes: callers then report `unknown`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

_MARKER = b"NLYM"
_LENGTH_AT, _TEXT_AT = 8, 16  # marker, four bytes of version, length of the text (64 bits, little endian)

_TENSOR = re.compile(r'^\s*(?:sub_)?tensor=\{ .*?\bname="([^"]*)".* type=(\w+) \}$')
_STATEMENT = re.compile(r'^\s*(\w+)=\{ name=(?:"([^"]*)"|(\S+)) ')
_LAYERS = re.compile(r'layers="([^"]*)"')
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_WORD = re.compile(r"[A-Z][a-z0-9]*")

_TYPES = {
    "int8": "int8",
    "uint8": "int8",
    "int4": "int8",
    "fp8_e4m3": "fp8",
    "half": "fp16",
    "bf16": "fp16",
    "float": "fp32",
    "tf32": "fp32",
}
_WIDTH = {"int8": 0, "fp8": 1, "fp16": 2, "fp32": 3}

_MATRIX = frozenset({"corrltn", "convolution", "deconvolution", "corrltn_bwd_data", "fully_connected", "gemm", "matmul"})
_POOLING = frozenset({"maxpool", "avgpool"})
_FUSED = frozenset({"function", "runtime_fusion"})
_FUSED_MATRIX = re.compile(r"mha|gemm|attention|Fc|Conv|Corr|Matm")
#: Abbreviations, in names of fused kernels, that move values or change their type and compute nothing.
_MOVES = frozenset({"Cast", "Resh", "Tran", "Conc", "Repl", "Slic", "Gath", "Move", "Copy", "Pad", "Expa", "Sque", "Unsq", "Etc"})


@dataclass(frozen=True)
class PlanOp:
    """One compute kernel of an engine.

    Attributes:
        kind: `matrix` (convolutions, matrix products, fused attention), `pooling` or `pointwise`.
        name: the kernel's name in the engine.
        layers: names of the ONNX nodes it came from, as far as the engine tells.
        type: `int8`, `fp8`, `fp16`, `fp32` or `unknown`: the type of what a matrix or pooling kernel multiplies or pools, the widest type
            that a pointwise kernel touches.
    """

    kind: str
    name: str
    layers: tuple[str, ...]
    type: str


def graph_texts(plan: bytes) -> list[str]:
    """The readable parts of an engine; empty where there is none."""
    texts = []
    at = plan.find(_MARKER)
    while at >= 0:
        length = int.from_bytes(plan[at + _LENGTH_AT : at + _TEXT_AT], "little")
        text = plan[at + _TEXT_AT : at + _TEXT_AT + length]
        if len(text) == length and text.startswith(b"header {"):
            texts.append(text.decode("utf-8", "replace"))
        at = plan.find(_MARKER, at + len(_MARKER))
    return texts


def read_plan(plan: bytes) -> list[PlanOp]:
    """The compute kernels of an engine, in order; empty where the engine does not tell."""
    texts = graph_texts(plan)
    ops: list[PlanOp] = []
    for at, text in enumerate(texts):
        if not _is_fusion(text):
            fusions = list(takewhile(_is_fusion, texts[at + 1 :]))
            ops += _ops(text, [_ops(fusion, []) for fusion in fusions])
    return ops


def _is_fusion(text: str) -> bool:
    """Is this the inside of a `runtime_fusion` statement of the text before it?"""
    return "accelerators={*}" in text.partition("\n}")[0]


def _ops(text: str, fusions: list[list[PlanOp]]) -> list[PlanOp]:
    types: dict[str, str] = {}
    ops: list[PlanOp] = []
    in_main = False
    for line in text.split("\n"):
        if line in ("main {", "}"):
            in_main = line == "main {"
        elif in_main:
            op = _op(line, types, fusions)
            ops.extend([op] if op else [])
        elif (tensor := _TENSOR.match(line)) is not None:
            types[tensor[1]] = _TYPES.get(tensor[2], "")
    return ops


def _op(line: str, types: dict[str, str], fusions: list[list[PlanOp]]) -> PlanOp | None:
    """The kernel in one statement, or None where it computes nothing (copies, casts, reshapes, shape arithmetic)."""
    statement = _STATEMENT.match(line)
    if statement is None:
        return None
    kind, name = statement[1], statement[2] or statement[3]
    layers = tuple(_LAYER.findall(found[1])) if (found := _LAYERS.search(line)) else ()
    inputs = [types.get(operand, "") for operand in _operands(line, "input")]
    outputs = [types.get(operand, "") for operand in _operands(line, "output")]
    if kind in _MATRIX:
        return PlanOp("matrix", name, layers, _widest(inputs[:2]) if all(inputs[:2]) and len(inputs) > 1 else "unknown")
    if kind in _POOLING:
        return PlanOp("pooling", name, layers, _widest(inputs[:1]))
    if kind in _FUSED and _FUSED_MATRIX.search(name):
        return PlanOp("matrix", name, layers, _fused_type(line, inputs, fusions))
    if kind in _FUSED and _computes(name):
        return PlanOp("pointwise", name, layers, _widest(inputs + outputs))
    return None


def _operands(line: str, key: str) -> list[str]:
    found = re.search(rf' {key}(?:_args)?=\{{((?: ?"[^"]*")*) ?\}}', line)
    return re.findall(r'"([^"]*)"', found[1]) if found else []


def _widest(types: list[str]) -> str:
    """A mix computes in the wider type."""
    return max((t for t in types if t), key=_WIDTH.__getitem__, default="unknown")


def _fused_type(line: str, inputs: list[str], fusions: list[list[PlanOp]]) -> str:
    """What a fused kernel multiplies: from its own text where it has one, else from operands that stand in no order."""
    found = re.search(r" binary ?= ?([0-9]{1,6}) ", line)
    if line.lstrip().startswith("runtime_fusion") and found and int(found[1]) < len(fusions):
        inside = [op.type for op in fusions[int(found[1])] if op.kind == "matrix"]
        return inside[0] if inside else "unknown"
    for narrow in ("int8", "fp8"):
        if "mha" in line and inputs.count(narrow) >= 3:
            return narrow  # queries, keys and values; a float operand beside them is the mask
    known = {t for t in inputs if t}
    return "unknown" if known & {"int8", "fp8"} and len(known) > 1 else _widest(inputs)


def _computes(name: str) -> bool:
    """Does a fused kernel do arithmetic? `__myl_CastGath` does not, `__myl_MulAddRelu` does."""
    return bool(set(_WORD.findall(name.removeprefix("__myl_"))) - _MOVES)
