"""Which ops compute in integers: decided from the rules, the scheme and what surrounds an op; the reasons of the others are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize import phases
from edgepress.compress.quantize.graph import (
    ACTIVATIONS,
    FLOAT,
    HEAVY,
    PIECES,
    RANGE,
    constant,
    is_float,
    kind_of,
    op_name,
    root_of,
    value_of,
)
from edgepress.compress.quantize.macs import macs_of
from edgepress.compress.quantize.masks import LARGEST, masked_nodes
from edgepress.targets.rules import QuantRules

_FUSES = HEAVY | {"add", "batch_norm", "mul"}
_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
#: Kinds that are in integers for what reads them: answers between -1 and 1 have few of these left where it counts.
_SQUEEZES = frozenset({"hard_sigmoid", "sigmoid", "silu", "tanh"})
#: Why a layer of `Scheme.float_layers` is not quantized.
KEPT = "kept in float: its integers cost too much accuracy"
#: Why a convolution within `QuantRules.float_entry` is not.
ENTRY = "reads the model's input and sums few products: the runtime's float kernel is faster than rounding and its integer one"
#: Such convolutions are in integers all the same where they are more than this share of the multiply-accumulates.
ENTRY_SHARE = 0.12
#: Why a layer of the kinds in `QuantRules.weight_only`, or one that is slower in integers by these rules, is not.
WEIGHT_ONLY = "the runtime has no integer kernel for it that is faster than in float: its weight alone is stored in integers"


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        kinds: every quantized node, in graph order, with its kind.
        tails: quantized node -> the node whose output it writes: itself, or the activation fused into it.
        outputs: tails whose output is rounded to integers.
        reasons: every other node -> why it stays float.
        bits: quantized nodes whose weight has fewer than 8 bits -> 4 or 2; layers that share a weight share its bits.
    """

    kinds: Mapping[Node, str]
    tails: Mapping[Node, Node]
    outputs: frozenset[Node]
    reasons: Mapping[Node, str]
    bits: Mapping[Node, int] = field(default_factory=dict)

    @property
    def weight_only(self) -> list[Node]:
        """Nodes that compute in float, with a weight that is stored in integers."""
        return [node for node, reason in self.reasons.items() if reason == WEIGHT_ONLY]

    @property
    def rounded(self) -> frozenset[Node]:
        """The tensors whose values become integers."""
        read = {item for node, kind in self.kinds.items() for item in data_inputs(node, kind) if is_float(item)}
        return self.outputs | read


def data_inputs(node: Node, kind: str) -> list[Node]:
    """The activations (or constants in their place) a quantized op reads; weights and biases are not among them."""
    if kind in _WEIGHTED:
        return [node.args[0]]
    if kind == "cat":
        return [item for item in node.args[0] if isinstance(item, Node)]
    if kind in ("matmul", "add", "mul"):
        return list(dict.fromkeys(item for item in node.args[:2] if isinstance(item, Node)))
    return [node.args[0]]


def place(
    module: GraphModule,
    rules: QuantRules,
    scheme: str,
    largest: Callable[[Node], float],
    float_layers: Collection[str] = (),
    narrow: Mapping[str, int] = MappingProxyType({}),
) -> Placement:
    """Choose what computes in integers.

    Ops with weights or two factors always do where the rules place them. Sums, products, pools and the like do only between
    integer neighbours: a residual sum between two layer norms would be rounded for nothing, and that loses accuracy.

    Args:
        module: canonical graph.
        rules: the runtime's.
        scheme: `static` or `static-matmul`.
        largest: largest magnitude of a float tensor in calibration.
        float_layers: names of nodes that stay float whatever the rules place.
        narrow: names of nodes whose weights have fewer than 8 bits where they are quantized -> 4 or 2.
    """
    placement = _Placing(module, rules, scheme, largest, frozenset(float_layers)).result()
    weighted = [node for node, kind in placement.kinds.items() if kind in _WEIGHTED]
    weights = {node.args[1]: narrow[node.name] for node in weighted if node.name in narrow}
    return replace(placement, bits={node: weights[node.args[1]] for node in weighted if node.args[1] in weights})


class _Placing:
    def __init__(
        self, module: GraphModule, rules: QuantRules, scheme: str, largest: Callable[[Node], float], float_layers: frozenset[str]
    ) -> None:
        self.module, self.rules, self.largest, self.float_layers = module, rules, largest, float_layers
        self.placed = rules.placement & (HEAVY | {"shape"}) if scheme == "static-matmul" else rules.placement
        self.masked = masked_nodes(module)
        self.varying = _varying(module)
        self.kinds: dict[Node, str] = {}
        self.reasons: dict[Node, str] = {}
        self.heads: dict[Node, Node] = {}

    def result(self) -> Placement:
        self._candidates()
        self._settle()
        self._leave_entries()
        tails = {node: self._tail(node) for node in self.kinds}
        outputs = frozenset(tails[node] for node, kind in self.kinds.items() if self._rounds_output(node, kind))
        return Placement(dict(self.kinds), tails, outputs, dict(self.reasons))

    def _candidates(self) -> None:
        for node in self.module.graph.nodes:
            if node.op != "call_function" or node in self.heads:
                continue
            kind = kind_of(node)
            reason = self._obstacle(node, kind)
            if kind is None or reason:
                self.reasons[node] = reason or "no integer kernel is known for it"
                continue
            self.kinds[node] = kind
            tail = self._tail(node)
            if tail is not node:
                self.heads[tail] = node

    def _obstacle(self, node: Node, kind: str | None) -> str | None:
        """Why a node cannot be quantized whatever surrounds it."""
        if node.name in self.float_layers:
            return KEPT
        if RANGE in node.meta:
            return "scales outlier channels down before rounding"
        if kind is None:
            return node.meta.get(FLOAT) or self.masked.get(node)
        if kind == "embedding" and kind in self.rules.placement:
            return "a lookup that stays float: its table is small, or something else reads it"
        if (kind in self.rules.weight_only or self._is_slow(node, kind)) and constant(self.module, node.args[1]) is not None:
            return WEIGHT_ONLY
        if kind not in self.placed:
            return f"this scheme leaves {kind} in float"
        if node in self.masked and kind != "shape":
            return self.masked[node]
        if node not in self.varying and kind not in ("embedding", "shape"):
            return "depends on no input, only on how many samples there are: converters compute it once, in float"
        inputs = data_inputs(node, kind)
        if kind in ("add", "mul") and not self.rules.affine and any(self._is_constant(item) for item in inputs):
            return "the runtime computes sums and products with constants within other kernels, in float"
        if kind == "mul" and any(map(_divides, inputs)):
            return "part of a normalization: what follows computes in float, as behind a fused one"
        if op_name(node) not in PIECES and not _single(node):
            return "does not compute in float32"
        if not all(_single(item) or op_name(item) in PIECES for item in inputs):
            return "mixes float32 with another type"
        if kind in _WEIGHTED and constant(self.module, node.args[1]) is None:
            return "its weight is computed at run time"
        for item in (*inputs, self._tail(node)):
            if is_float(item) and not self.largest(item) <= LARGEST:
                return f"reaches {self.largest(item):.3g} in calibration (more than {LARGEST:g}): 8 bits cannot hold such a range"
        return None

    def _is_slow(self, node: Node, kind: str) -> bool:
        """Is it a convolution for which the runtime has integer kernels that are slower than its float ones, if any?"""
        if kind not in ("conv", "conv_transpose"):
            return False
        weight = value_of(node.args[1]).shape
        channels = value_of(node.args[0]).shape[1 - len(weight)]
        if kind == "conv_transpose":
            return self.rules.beside and not phases.fits(node)
        if weight[:2] == (channels, 1):
            largest = self.rules.float_windows.get(len(weight) - 2, math.inf)
            return bool(weight[2:].numel() > largest)
        places = value_of(node).shape[2 - len(weight) :].numel()
        return weight[1] < channels and any(weight[1] < inputs and places >= least for inputs, least in self.rules.float_groups.items())

    def _is_constant(self, node: Node) -> bool:
        return constant(self.module, root_of(node)) is not None

    def _tail(self, node: Node) -> Node:
        """The activation that a kernel applies before rounding, or the node itself."""
        users = list(node.users)
        if len(users) != 1 or kind_of(node) not in _FUSES:
            return node
        clips = op_name(users[0]) in ACTIVATIONS and kind_of(users[0]) == "shape"
        fuses = clips or (kind_of(node) in HEAVY and kind_of(users[0]) in self.rules.fused)
        return users[0] if fuses else node

    def _settle(self) -> None:
        """Take light ops out until each one left has an integer producer and an integer consumer (greatest fixed point)."""
        changed = True
        while changed:
            lonely = [node for node, kind in self.kinds.items() if kind not in HEAVY and not self._surrounded(node, kind)]
            for node in lonely:
                del self.kinds[node]
                self.reasons[node] = "its neighbours compute in float: rounding it would cost accuracy and save nothing"
            changed = bool(lonely)

    def _leave_entries(self) -> None:
        """Leave small convolutions of the model's inputs in float, where they are a small part of the network."""
        behind: set[Node] = set()
        for node in self.module.graph.nodes:
            if kind_of(node) in HEAVY or not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
        entries = [n for n, kind in self.kinds.items() if kind == "conv" and n.args[0] not in behind and self._is_small(n)]
        if not entries:
            return
        macs = macs_of(self.module)
        if sum(macs[node] for node in entries) > ENTRY_SHARE * sum(macs.values()):
            return
        for node in entries:
            self.heads.pop(self._tail(node), None)
            del self.kinds[node]
            self.reasons[node] = ENTRY
        self._settle()

    def _is_small(self, node: Node) -> bool:
        weight = value_of(node.args[1])
        products = weight[0].numel() if weight.dim() == 4 and weight.shape[1] == value_of(node.args[0]).shape[1] else math.inf
        return products <= self.rules.float_entry

    def _surrounded(self, node: Node, kind: str) -> bool:
        inputs = [item for item in data_inputs(node, kind) if item.op != "get_attr"]
        produced = [self._makes_integers(item) for item in inputs]
        if not any(produced):
            return False
        tail = self._tail(node)
        pieces = list(inputs[0].users) if self.rules.whole_splits and op_name(inputs[0]) in PIECES else [tail]
        if any(self._reads_integers(user, piece) for piece in pieces for user in piece.users):
            return True
        ends = any(user.op == "output" for user in tail.users) and kind not in _SQUEEZES
        return ends and all(produced) and self._only_integers(inputs)

    def _only_integers(self, tensors: Iterable[Node]) -> bool:
        """Do only kernels make these that cannot write floats, and none that squeezes its answers between -1 and 1?"""
        waiting, seen = list(tensors), set[Node]()
        while waiting:
            head = self.heads.get(node := waiting.pop(), node)
            kind = self.kinds.get(head)
            if kind is None or kind in _SQUEEZES or (kind in HEAVY and kind in self.rules.float_output):
                return False
            if kind not in HEAVY and head not in seen:
                seen.add(head)
                waiting += [item for item in data_inputs(head, kind) if item.op != "get_attr"]
        return True

    def _makes_integers(self, node: Node) -> bool:
        return self.heads.get(node, node) in self.kinds

    def _reads_integers(self, user: Node, tensor: Node) -> bool:
        return user in self.kinds and tensor in data_inputs(user, self.kinds[user])

    def _rounds_output(self, node: Node, kind: str) -> bool:
        if not is_float(node):
            return False
        tail = self._tail(node)
        if kind in HEAVY and (kind in self.rules.float_output or not self.rules.quantize_outputs):
            return any(self._reads_integers(user, tail) or op_name(user) in self.rules.rounded_before for user in tail.users)
        return True


def _varying(module: GraphModule) -> frozenset[Node]:
    """Nodes that depend on the values of an input, and not on its sizes alone."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        carries = isinstance(value_of(node), torch.Tensor | list | tuple)
        if node.op == "placeholder" or (carries and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return frozenset(found)


def _divides(factor: Node) -> bool:
    """Is it one over what was computed, as normalizations written out multiply by (RMSNorm: one over the root of a mean square)?"""
    factor = root_of(factor)
    exponent = factor.args[1] if op_name(factor) == "pow" else 0
    return op_name(factor) in ("rsqrt", "reciprocal") or (isinstance(exponent, int | float) and exponent < 0)


def _single(node: Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
