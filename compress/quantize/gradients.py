"""Gradients of a model's outputs, taken once for all of them.

The square of the outputs' gradient with respect to a value is the diagonal of the Gauss-Newton matrix: how much an error there changes the
outputs (Hassibi & Stork 1993, "Optimal Brain Surgeon", section 3; Li et al. 2021, "BRECQ", section 3.2, takes that of the loss). Random
signs sum the outputs up, so that one backward pass estimates the sum of their squared gradients (Hutchinson 1990, "A Stochastic Estimator
of the Trace", section 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.quantize.batches import fitting
from edgepress.compress.quantize.graph import answers_of, value_of
from edgepress.compress.quantize.living import bytes_of

#: Elements of activations that a backward pass may hold, more than one sample's if that has fewer.
_ELEMENTS = 1 << 24
_SEED = 0


class NoDerivativeError(Exception):
    """Gradients of the outputs cannot be taken: an operator has none."""


class OutputGradients(Interpreter, ABC):  # type: ignore[misc]
    """Runs a graph and hands out the gradients of its outputs with respect to some of its tensors, which are not kept.

    Args:
        module: the float graph.
        names: of the nodes whose gradients `take` gets.
    """

    def __init__(self, module: GraphModule, names: Collection[str]) -> None:
        super().__init__(module)
        self._names = names
        self._inner = set(answers_of(module)) - set(next(node for node in module.graph.nodes if node.op == "output").all_input_nodes)
        self._answers: list[Tensor] = []
        self._signs = torch.Generator().manual_seed(_SEED)

    @abstractmethod
    def take(self, name: str, values: Tensor, gradient: Tensor) -> None:
        """Called in no particular order with every such tensor of a batch, float, and the gradient of the same shape."""

    def add(self, batch: Sequence[Tensor]) -> None:
        """Run one batch forward and backward.

        Raises:
            NoDerivativeError: the backward pass did not come through.
        """
        with torch.enable_grad():
            self._answers.clear()
            outputs = [*torch.utils._pytree.tree_leaves(self.run(*batch)), *self._answers]
            total = self._sum([item for item in outputs if isinstance(item, Tensor) and item.requires_grad])
            if total is not None:
                try:
                    total.backward()
                except RuntimeError as error:
                    raise NoDerivativeError(str(error).partition("\n")[0]) from error

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant, which needs no gradient."""
        held = super().get_attr(target, args, kwargs)
        return held.detach() if isinstance(held, Tensor) else held

    def run_node(self, n: Node) -> Any:
        """Run one node; a tensor whose gradient is taken needs one, and integers have none."""
        value = value_of(n)
        with torch.set_grad_enabled(not isinstance(value, Tensor) or value.is_floating_point()):
            result = super().run_node(n)
        if n.name in self._names and isinstance(result, Tensor) and result.is_floating_point():
            values = result.detach()
            if not result.requires_grad:
                result = values.clone().requires_grad_()
            result.register_hook(lambda gradient: self.take(n.name, values.float(), gradient))
        if n in self._inner:
            self._answers.append(result)
        return result

    def _sum(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """All elements of all outputs, with random signs; no output counts more for being larger."""
        total = None
        for output in outputs:
            signs = torch.randint(0, 2, output.shape, generator=self._signs) * 2 - 1
            size = (output.detach().square().sum() / len(output)).sqrt().clamp_min(1e-30)
            part = (output * signs).sum() / size
            total = part if total is None else total + part
        return total


def pieces(module: GraphModule, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The samples in batches that a graph takes and a backward pass can hold."""
    elements = sum(bytes_of(node) for node in module.graph.nodes) / 4
    size = max(int(_ELEMENTS / max(elements, 1)), 1)
    return fitting(module, zip(*(item.split(size) for item in inputs), strict=True))
