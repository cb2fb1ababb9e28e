"""Quantization-aware training (Jacob et al. 2018, section 3): the weights learn to be rounded as one runtime rounds them.

The graph, the placement and the scales are those of the calibrated rendering; rounding is simulated in float with a straight-through
gradient (Bengio et al. 2013, section 4). Weights are rounded by their range of the moment, activations by the calibrated one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from edgepress.compress.program import export_like
from edgepress.compress.quantize.graph import attribute, value_of
from edgepress.compress.quantize.quantizer import RulesQuantizer
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.statistics import Statistics
from edgepress.compress.quantize.weight_grid import Rounding
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules


class SimulatedWeight(FakeQuantizeBase):  # type: ignore[misc]
    """Rounds the weight of a layer by its values of the moment, with the gradient of the identity.

    Args:
        rounding: how a rendering rounds it.
        specified: what else torchao passes to what it makes.
    """

    def __init__(self, rounding: Rounding, **specified: Any) -> None:
        super().__init__()
        self._rounding = rounding

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        return weight + (self._rounding.grid(weight.detach()).nearest - weight).detach()

    def calculate_qparams(self) -> None:
        """Never asked: the trained weights are rendered anew."""


class PerChannelSimulatedWeight(SimulatedWeight):
    """torchao tells by the name whether an observer takes a channel axis."""


@dataclass(frozen=True)
class Simulation:
    """A model that rounds as a runtime will.

    Attributes:
        module: takes and returns what the program does; its weights are parameters. Batch norms are folded, dropout is gone.
        plain: the same graph without rounding; it gets the trained weights back.
    """

    module: GraphModule
    plain: GraphModule

    def program(self, like: ExportedProgram) -> ExportedProgram:
        """The trained float weights as a program, to be calibrated and rendered.

        Args:
            like: the program that was simulated; its example inputs and dynamic batch are kept.
        """
        trained = dict(self.module.named_parameters())
        for name, parameter in self.plain.named_parameters():
            parameter.data.copy_(trained[name].detach())
        return export_like(self.plain, like)


def simulate(program: ExportedProgram, statistics: Statistics, rules: QuantRules, scheme: Scheme) -> Simulation:
    """Insert the rounding of a rendering into the float graph.

    Args:
        program: float, eval mode.
        statistics: of the same program; training starts from the ranges they give.
        rules: of the runtime. Outlier channels are not moved into weights: training finds its own balance.
        scheme: kind `static` or `static-matmul`.

    Raises:
        QuantizationError: see `render`.
    """
    module, placement, parameters = placed(program, statistics, replace(rules, smooth=False), scheme)
    _weights_to_parameters(module)
    plain = copy.deepcopy(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared: GraphModule = prepare_qat_pt2e(module, RulesQuantizer(rules, placement, parameters, _simulated(rules)))
    return Simulation(prepared, plain)


def _simulated(rules: QuantRules) -> Callable[[Node, bool], Any]:
    def simulated(node: Node, per_channel: bool) -> Any:
        rounding = Rounding.of(node, value_of(node.args[1]).shape, rules)
        return (PerChannelSimulatedWeight if per_channel else SimulatedWeight).with_args(rounding=rounding)

    return simulated


def _weights_to_parameters(module: GraphModule) -> None:
    """What a conv, a linear layer or a norm reads is trained, folded constants too; the program keeps its own copy."""
    for node in module.graph.nodes:
        if node.op != "get_attr" or not node.target:
            continue
        owner_name, _, last = str(node.target).rpartition(".")
        owner, tensor = module.get_submodule(owner_name), attribute(module, str(node.target))
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or _read_as_weight(node)):
            delattr(owner, last)
            owner.register_parameter(last, nn.Parameter(tensor.detach().clone()))


def _read_as_weight(node: Node) -> bool:
    return any(node in user.args[1:3] and "weight" in _arguments(user) for user in node.users)


def _arguments(node: Node) -> Sequence[str]:
    return [a.name for a in node.target._schema.arguments] if isinstance(node.target, torch._ops.OpOverload) else []
