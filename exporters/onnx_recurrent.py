"""ONNX Runtime's integer LSTM, the one integer kernel of a recurrent op that it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_ANY_SIZE = 1 << 40


def quantize_lstm(path: Path, weight_bits: int) -> bool:
    """Turn LSTMs into DynamicQuantizeLSTM in place: int8 weights per channel, ranges of what they read taken at run time.

    Args:
        path: of the file.
        weight_bits: see `onnx_dynamic.quantized`.

    Returns:
        Were there any?
    """
    import onnx_ir as ir

    from edgepress.exporters.onnx_dynamic import quantized
    from edgepress.exporters.onnx_passes import write

    model = ir.load(path)
    if not any(node.op_type == "LSTM" for node in model.graph):
        return False
    _fold_weights(model)
    with TemporaryDirectory(dir=path.parent) as scratch:
        folded = Path(scratch) / path.name
        ir.save(model, folded)
        made = quantized(folded, ("LSTM",), weight_bits)
    write(made, path)
    return any(node.op_type == "DynamicQuantizeLSTM" for node in made.graph.node)


def _fold_weights(model: Any) -> None:
    """Compute weights once, in place: torch stores the gates in another order, and the file rearranges them."""
    from onnxscript.optimizer import fold_constants

    makers = {maker for node in model.graph if node.op_type == "LSTM" for value in node.inputs[1:4] for maker in _makers(value)}
    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=lambda node: node in makers)


def _makers(value: Any) -> Iterator[Any]:
    """The nodes that a weight comes from; none where it depends on an input of the model."""
    found, waiting = set[Any](), [value]
    while waiting:
        item = waiting.pop()
        if item is None or item.is_initializer():
            continue
        node = item.producer()
        if node is None:
            return
        if node not in found:
            found.add(node)
            waiting += node.inputs
    yield from found
