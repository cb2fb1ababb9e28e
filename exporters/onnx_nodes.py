"""An ONNX graph to look things up in, who makes and who reads a tensor, constants, shapes; and new nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Graph:
    """Who makes and who reads what in an ONNX graph, and its constants."""

    def __init__(self, model: Any) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in model.graph.output}

    def array(self, name: str) -> np.ndarray | None:
        """A constant's elements; None for what is computed."""
        import onnx

        return onnx.numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def maker(self, name: str, operator: str = "") -> Any | None:
        """The node that makes a tensor, where it is such an operator; None for inputs and constants."""
        node = self._makers.get(name)
        return node if node is not None and operator in ("", node.op_type) else None

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def only_reader(self, name: str, operator: str) -> Any | None:
        """The one node that reads a tensor, where it is such an operator and the tensor no output of the model."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator and name not in self._outputs else None


def has(model: Any, operator: str) -> bool:
    """Is there such a node?"""
    return any(node.op_type == operator for node in model.graph.node)


def shapes(model: Any) -> dict[str, list[int | None]]:
    """Tensor -> its dimensions, None where one is open; those that inference finds."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    found = dict[str, list[int | None]]()
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = [each.dim_value if each.HasField("dim_value") else None for each in value.type.tensor_type.shape.dim]
    return found


def settings(node: Any) -> dict[str, Any]:
    """Attributes of a node."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


class Writer:
    """New nodes and constants, with names that begin alike."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self.name, self._nodes = model, name, list[Any]()

    def constant(self, part: str, values: np.ndarray | np.generic | Sequence[int]) -> str:
        """Add an initializer; returns its name."""
        import onnx

        name = f"{self.name}_{part}"
        self._model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], result: str, **settings: Any) -> str:
        """Add a node with one output; returns its name."""
        import onnx

        self._nodes.append(onnx.helper.make_node(operator, inputs, [result], result, **settings))
        return result

    def taken(self) -> list[Any]:
        """The nodes added since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes
