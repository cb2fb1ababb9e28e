"""The float model and its rendering side by side: what every op of the two answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.program import export_like, load_program
from edgepress.compress.quantize.graph import layer_of, op_name
from edgepress.compress.quantize.int4 import render_int4
from edgepress.compress.quantize.living import LIMIT_BYTES, bytes_of
from edgepress.compress.quantize.prepare import float_module
from edgepress.compress.quantize.render import placed, render
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules

_ROUNDED = ("quantize_per_", "dequantize_per_", "fp8")


@dataclass(frozen=True)
class SideBySide:
    """Two models that take the same inputs, and whose ops have the same names where they answer the same in float.

    Attributes:
        exact: the float model as it was rendered: batch norms folded, outlier channels spread, no weight refined.
        rendered: its rendering in the integers of one runtime.
    """

    exact: GraphModule
    rendered: GraphModule

    @staticmethod
    def of(program: Path, statistics: Statistics | None, rules: QuantRules, scheme: Scheme) -> SideBySide:
        """A saved float program beside its rendering.

        Raises:
            QuantizationError: see `render`.
        """
        loaded, rules = load_program(program), rules.of(scheme)
        rendered = render(loaded, statistics, rules, scheme).module
        if statistics is None:
            return SideBySide(float_module(loaded), rendered)
        exact = placed(loaded, replace(statistics, corrections={}), rules, scheme)[0]
        exact.recompile()  # its graph was changed where outliers are spread
        return SideBySide(exact, rendered)

    @staticmethod
    def of_int4(program: Path, rounded: Path, rules: QuantRules) -> SideBySide:
        """A saved float program beside the one with 4-bit weights that was made of it.

        Raises:
            QuantizationError: the second has no such weights.
        """
        loaded = load_program(program)
        exact = export_like(float_module(loaded), loaded)  # as the other was: names are given anew
        return SideBySide(float_module(exact), render_int4(rounded, rules).module)

    def samples(self, most: int) -> int:
        """How many samples, `most` at most, keep all answers of both models within `LIMIT_BYTES`; one at least."""
        return max(1, min(most, LIMIT_BYTES // max(2 * sum(bytes_of(node) for node in self.exact.graph.nodes), 1)))

    def answers(self, inputs: Sequence[Tensor]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Op -> the float tensor it answers, in the order of the graph, of the float model and of the rendering.

        A tensor that the rendering rounds is the rounded one: that is what the ops after it read.
        """
        found = []
        with torch.no_grad():
            for module in (self.exact, self.rendered):
                taps = _Taps(module)
                taps.run(*inputs)
                found.append(taps.values)
        return found[0], found[1]

    def places(self) -> dict[str, tuple[str, str]]:
        """Op of the float model -> the module of the user's model that makes it, and what it is (`conv2d`, `linear`, `input`, …)."""
        return {node.name: (layer_of(node), "input" if node.op == "placeholder" else op_name(node)) for node in self.exact.graph.nodes}


class _Taps(Interpreter):  # type: ignore[misc]
    """Runs a graph and keeps every float tensor but its constants."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, node: Node) -> Any:
        """Run one node and keep its answer under the name of the op whose values it holds."""
        result = super().run_node(node)
        if isinstance(result, Tensor) and result.is_floating_point():
            while node.op == "call_function" and op_name(node).startswith(_ROUNDED):
                node = node.args[0]
            if node.op in ("placeholder", "call_function"):
                self.values[node.name] = result.numpy()
        return result
