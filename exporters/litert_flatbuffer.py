"""A finished .tflite file as an object: its operators and constants, float or integer inputs and outputs, the ops left in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edgepress.compress.quantize.magnified import REASON
from edgepress.targets.nouns import Scheme, Signature, TensorSpec

_FLOAT32, _INT8 = 0, 9
_QUANTIZE, _DEQUANTIZE = 114, 6
#: Ops that compute; the others move, look up or convert values.
_DATA_MOVERS = frozenset(
    (
        *("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "PADV2", "GATHER", "GATHER_ND", "EMBEDDING_LOOKUP", "CAST", "QUANTIZE"),
        *("DEQUANTIZE", "CONCATENATION", "SPLIT", "PACK", "UNPACK", "EXPAND_DIMS", "SQUEEZE", "BROADCAST_TO", "SHAPE", "FILL"),
    )
)
#: Builtin op code -> first version with int8 weights that have a scale per channel (CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE,
#: EMBEDDING_LOOKUP, FULLY_CONNECTED), from the format's table of op versions.
_PER_CHANNEL_VERSION = {3: 5, 4: 6, 6: 5, 7: 4, 9: 12}
#: How the names of tensors begin whose logarithm or root is taken, and of those that layers write whose weights alone are integers.
KEPT, UNPACKED = "magnified/", "unpacked/"
_LAYERS = frozenset({"BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_WEIGHTS_ALONE = "float arithmetic; only weights are integers"
_NO_WEIGHTS = "dynamic-range kernels exist for ops with constant int8 weights alone"
_SLOWER = "rounding what it reads while it runs takes longer than its products in float; only weights are integers"


class TfliteFile:
    """A .tflite file as an object that can be edited and packed again (LiteRT's own flatbuffer classes).

    Args:
        content: the file.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.tools import flatbuffer_utils

        self._tools = flatbuffer_utils
        self.model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        self.graph: Any = self.model.subgraphs[0]
        for buffer in self.model.buffers:
            if isinstance(buffer.data, bytes | bytearray):  # packed byte by byte in Python otherwise: 90 s for 90 MB
                buffer.data = np.frombuffer(buffer.data, np.uint8)

    def pack(self) -> bytes:
        """The file again; the same bytes for the same content."""
        return bytes(self._tools.convert_object_to_bytearray(self.model))

    def integer_boundary(self) -> None:
        """Take away the QUANTIZE behind each float input and the DEQUANTIZE before each float output: callers see int8.

        An input that is read in float as well, or returned, keeps its type, and so does an output that no DEQUANTIZE makes.
        """
        for index in list(self.graph.inputs):
            readers = self.readers(index)
            if len(readers) == 1 and self.builtin(readers[0]) == _QUANTIZE and index not in self.graph.outputs:
                self._replace_port("inputs", index, readers[0].outputs[0], readers[0])
        for index in list(self.graph.outputs):
            maker = self.maker(index)
            if maker is None or self.readers(index):
                continue
            if self.builtin(maker) == _DEQUANTIZE and self._is_int8(maker.inputs[0]):
                self._replace_port("outputs", index, maker.inputs[0], maker)

    def _replace_port(self, ports: str, old: int, new: int, operator: Any) -> None:
        """Make tensor `new` the input or output that `old` was, under its name, and drop the op between them."""
        self.drop([operator])
        self.graph.tensors[new].name, self.graph.tensors[old].name = self.graph.tensors[old].name, self.graph.tensors[new].name
        setattr(self.graph, ports, [new if i == old else i for i in getattr(self.graph, ports)])
        for definition in self.model.signatureDefs or []:
            for entry in getattr(definition, ports):
                entry.tensorIndex = new if entry.tensorIndex == old else entry.tensorIndex

    def maker(self, index: int) -> Any | None:
        """The operator that computes a tensor; None for inputs and constants."""
        return next((operator for operator in self.graph.operators if index in operator.outputs), None)

    def readers(self, index: int) -> list[Any]:
        """The operators that read a tensor."""
        return [operator for operator in self.graph.operators if index in operator.inputs]

    def name(self, operator: Any) -> str:
        """Name of an operator's kind."""
        return str(self._tools.opcode_to_name(self.model, operator.opcodeIndex))

    def behind(self, ends: Collection[str], between: Collection[str]) -> list[Any]:
        """The layers whose results ops of the kinds `ends` read, through ops of the kinds `between` alone; in the file's order."""
        makers = {index: operator for operator in self.graph.operators for index in operator.outputs}
        waiting = [operator.inputs[0] for operator in self.graph.operators if self.name(operator) in ends]
        seen, found = set[int](), set[int]()
        while waiting:
            index = waiting.pop()
            if index in seen or index not in makers:
                continue
            seen.add(index)
            if self.name(makers[index]) in _LAYERS:
                found.add(index)
            elif self.name(makers[index]) in between:
                waiting += makers[index].inputs
        return [operator for operator in self.graph.operators if not found.isdisjoint(operator.outputs)]

    def builtin(self, operator: Any) -> int:
        """Number of an operator's kind in the format's `BuiltinOperator`."""
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def stamp_versions(self) -> None:
        """Give ops with float activations and int8 weights per channel the version that has that kernel.

        ai-edge-quantizer leaves version 1, which an older runtime accepts and computes with a scale of zero: wrong outputs
        without an error, where the right version makes it refuse the file.
        """
        for operator in self.graph.operators:
            code = self.model.operatorCodes[operator.opcodeIndex]
            version = _PER_CHANNEL_VERSION.get(code.builtinCode)
            if version is not None and code.version < version and self._has_channel_weights(operator):
                operator.opcodeIndex = self.code(code.builtinCode, version)
        used = sorted({operator.opcodeIndex for operator in self.graph.operators})
        self.model.operatorCodes = [self.model.operatorCodes[i] for i in used]
        for operator in self.graph.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)

    def _has_channel_weights(self, operator: Any) -> bool:
        weight = self.graph.tensors[operator.inputs[0 if len(operator.inputs) == 1 else 1]]
        result = self.graph.tensors[operator.outputs[0]]
        scales = weight.quantization.scale if weight.quantization is not None else None
        return bool(weight.type == _INT8 and result.type == _FLOAT32 and scales is not None and len(scales) > 1)

    def io_signature(self, signature: Signature, batch: int) -> tuple[Signature, dict[str, Any]]:
        """Inputs and outputs as stored, in the order of `signature`, and scale and zero point of the integer ones."""
        stored = self.model.signatureDefs[0]
        inputs = {_text(entry.name): entry.tensorIndex for entry in stored.inputs}
        outputs = {_text(entry.name): entry.tensorIndex for entry in stored.outputs}
        facts: dict[str, Any] = {}
        specs: list[tuple[TensorSpec, ...]] = []
        for wanted, table in ((signature.inputs, inputs), (signature.outputs, outputs)):
            row = []
            for spec in wanted:
                tensor = self.graph.tensors[table[spec.name]]
                shape = tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()
                row.append(TensorSpec(spec.name, self._tools.type_to_name(tensor.type).lower(), shape))
                if self._is_int8(table[spec.name]):
                    parameters = tensor.quantization
                    facts[spec.name] = {"scale": float(parameters.scale[0]), "zero_point": int(parameters.zeroPoint[0])}
            specs.append(tuple(row))
        return Signature(specs[0], specs[1]), facts

    def float_ops(self, scheme: Scheme) -> tuple[Mapping[str, Any], ...]:
        """Ops that compute in float under a scheme made from the finished file; empty where float was asked for."""
        if scheme.kind == "float":
            return ()
        usual = _WEIGHTS_ALONE if scheme.kind == "weights" else _NO_WEIGHTS
        lines: Counter[tuple[str, str]] = Counter()
        for operator in self.graph.operators:
            name = self.name(operator)
            kinds = [self.graph.tensors[i].type for i in operator.inputs if i >= 0]
            if name not in _DATA_MOVERS and self.graph.tensors[operator.outputs[0]].type == _FLOAT32 and _INT8 not in kinds:
                written = _text(self.graph.tensors[operator.outputs[0]].name)
                lines[name, REASON if written.startswith(KEPT) else _SLOWER if written.startswith(UNPACKED) else usual] += 1
        return tuple({"op": name, "count": count, "reason": reason} for (name, reason), count in sorted(lines.items()))

    def remaining(self, lines: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        """Of the ops a rendering left in float, those that are float in the file.

        GELU and TANH between two integer ops become table look-ups.
        """
        types: dict[str, set[int]] = {}
        for operator in self.graph.operators:
            name = self.name(operator)
            types.setdefault(name, set()).add(self.graph.tensors[operator.outputs[0]].type)
        return tuple(line for line in lines if types.get(str(line["op"]).removeprefix("aten.").upper()) != {_INT8})

    def data(self, index: int, dtype: type[np.generic]) -> np.ndarray | None:
        """Values of a constant tensor; None where it is no constant."""
        tensor = self.graph.tensors[index]
        found = self.model.buffers[tensor.buffer].data
        if found is None or not len(found):
            return None
        return np.frombuffer(bytes(found), dtype).reshape([int(size) for size in tensor.shape])

    def constant(self, name: bytes, values: np.ndarray, kind: int, scales: np.ndarray | None = None) -> int:
        """Add a constant tensor; returns its index.

        Args:
            name: of the tensor.
            values: of the type that `kind` stands for.
            kind: number of their type in the format's `TensorType`.
            scales: (channels,) float32 where these are integers with zero point 0 and a scale for each index of dimension 0.
        """
        from ai_edge_litert import schema_py_generated as schema

        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.shape = name, np.array(values.shape, np.int32)
        tensor.type, tensor.buffer = kind, len(self.model.buffers) - 1
        if scales is not None:
            parameters = tensor.quantization = schema.QuantizationParametersT()
            parameters.scale, parameters.zeroPoint, parameters.quantizedDimension = scales, np.zeros(len(scales), np.int64), 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def drop(self, operators: Sequence[Any]) -> None:
        """Take operators out."""
        gone = {id(operator) for operator in operators}
        self.graph.operators = [operator for operator in self.graph.operators if id(operator) not in gone]

    def drop_unread(self) -> None:
        """Take out operators whose results nothing reads, and the values of constants that nothing reads."""
        while True:
            read = {int(index) for operator in self.graph.operators for index in operator.inputs} | {int(i) for i in self.graph.outputs}
            unread = [operator for operator in self.graph.operators if read.isdisjoint(map(int, operator.outputs))]
            if not unread:
                break
            self.drop(unread)
        kept = {self.graph.tensors[index].buffer for index in read if index >= 0}
        kept |= {tensor.buffer for graph in self.model.subgraphs[1:] for tensor in graph.tensors}
        for index, tensor in enumerate(self.graph.tensors):
            if index not in read and tensor.buffer not in kept:
                self.model.buffers[tensor.buffer].data = None

    def operators(self) -> list[tuple[str, int]]:
        """Every kind of op in the file with its version, in the order of the file."""
        codes = self.model.operatorCodes
        return [(str(self._tools.opcode_to_name(self.model, i)), int(code.version)) for i, code in enumerate(codes)]

    def _is_int8(self, index: int) -> bool:
        tensor = self.graph.tensors[index]
        return bool(tensor.type == _INT8 and tensor.quantization is not None and tensor.quantization.scale is not None)

    def code(self, builtin: int, version: int) -> int:
        """Index of an operator code of at least this version, added when absent."""
        from ai_edge_litert import schema_py_generated as schema

        for i, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == builtin and code.version >= version:
                return i
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
