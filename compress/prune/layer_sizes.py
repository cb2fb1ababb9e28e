"""Attributes of torch's own layers that follow from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgepress.compress.prune.flow import call_of
from edgepress.compress.quantize.graph import op_name

#: Operators with a number of groups: op name -> (the argument that holds the number, the attribute).
_GROUPED = {
    **dict.fromkeys((f"conv{n}d" for n in (1, 2, 3)), ("groups", "groups")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("groups", "groups")),
    "group_norm": ("num_groups", "num_groups"),
}


class Unfit(Exception):
    """A class cannot hold these sizes; the message is a sentence for the user."""


@dataclass(frozen=True)
class LayerFacts:
    """What the shapes of a layer's tensors do not tell.

    Attributes:
        path: of the layer, dotted.
        groups: number of groups of a convolution or group norm in the program; None where it is not known.
        heads: heads that are left; None where they are not known.
    """

    path: str
    groups: int | None = None
    heads: int | None = None


def groups_in(program: ExportedProgram) -> dict[str, int]:
    """Name of a weight -> number of groups of the convolution or group norm that reads it."""
    names = {s.arg.name: str(s.target) for s in program.graph_signature.input_specs if s.target is not None}
    found = {}
    for node in program.graph.nodes:
        entry = _GROUPED.get(op_name(node))
        if entry is not None:
            call = call_of(node)
            weight = call.get("weight")
            while isinstance(weight, Node) and weight.op != "placeholder" and weight.all_input_nodes:
                weight = weight.all_input_nodes[0]  # a weight that is computed, e.g. normalised or cast
            if isinstance(weight, Node) and weight.name in names:
                found[names[weight.name]] = int(call[entry[0]])
    return found


def layer_attributes(layer: nn.Module, facts: LayerFacts) -> dict[str, Any]:
    """The attributes that a layer of torch (or of a class derived from one) must have for its present tensors.

    Args:
        layer: its tensors have their new shapes already.
        facts: what else is known of it.

    Raises:
        Unfit: no attributes make this class hold these shapes.
    """
    for kinds, rule in _RULES:
        if isinstance(layer, kinds):
            return {name: value for name, value in rule(layer, facts).items() if hasattr(layer, name)}
    return {}


def _conv(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    groups = layer.groups if facts.groups is None else facts.groups
    first, second = layer.weight.shape[:2]
    if isinstance(layer, _ConvTransposeNd):
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return {"in_features": layer.weight.shape[1], "out_features": layer.weight.shape[0]}


def _bilinear(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return dict(zip(("out_features", "in1_features", "in2_features"), layer.weight.shape, strict=True))


def _embedding(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return dict(zip(("num_embeddings", "embedding_dim"), layer.weight.shape, strict=True))


def _norm(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    tensor = layer.running_mean if layer.weight is None else layer.weight
    return {} if tensor is None else {"num_features": len(tensor)}


def _layer_norm(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return {} if layer.weight is None else {"normalized_shape": list(layer.weight.shape)}


def _group_norm(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    if layer.weight is None:
        return {}
    return {"num_channels": len(layer.weight), "num_groups": layer.num_groups if facts.groups is None else facts.groups}


def _prelu(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return {"num_parameters": layer.weight.numel()}


def _rnn(layer: nn.RNNBase, facts: LayerFacts) -> dict[str, Any]:
    """Every layer and direction of the module must have the first one's hidden size, and read what the layer before gives."""
    ends = ["", "_reverse"] if layer.bidirectional else [""]
    shapes = {name: value.shape for name, value in layer.named_parameters(recurse=False)}
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    hidden, given = shapes["weight_ih_l0"][0] // gates, shapes["weight_hh_l0"][1]
    for depth in range(layer.num_layers):
        reads = shapes["weight_ih_l0"][1] if depth == 0 else given * len(ends)
        for end in ends:
            found = (*shapes[f"weight_ih_l{depth}{end}"], *shapes[f"weight_hh_l{depth}{end}"])
            if found != (gates * hidden, reads, gates * hidden, given):
                raise Unfit(
                    f"{type(layer).__name__} {facts.path} has one hidden size for all its layers and directions, and they now differ"
                )
    return {"input_size": shapes["weight_ih_l0"][1], "hidden_size": hidden, "proj_size": given if layer.proj_size else 0}


def _rnn_cell(layer: Any, facts: LayerFacts) -> dict[str, Any]:
    return {"input_size": layer.weight_ih.shape[1], "hidden_size": layer.weight_hh.shape[1]}


def _multihead(layer: nn.MultiheadAttention, facts: LayerFacts) -> dict[str, Any]:
    """The class computes its head size as embed_dim / num_heads, and embed_dim is both what it reads and what its heads hold."""
    if layer._qkv_same_embed_dim:
        rows, reads = layer.in_proj_weight.shape
        features, kv = rows // 3, (reads, reads)
    else:
        features, reads = layer.q_proj_weight.shape
        kv = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]
        rows = features + len(layer.k_proj_weight) + len(layer.v_proj_weight)
    heads = layer.num_heads if facts.heads is None else facts.heads
    if rows != 3 * reads or features != reads or layer.out_proj.weight.shape[1] != reads or features % heads:
        raise Unfit(
            f"nn.MultiheadAttention {facts.path} takes 3 x {reads} rows of queries, keys and values for its {reads} features, "
            f"and {rows} in {heads} heads are left"
        )
    sizes = {"embed_dim": features, "num_heads": heads, "head_dim": features // heads}
    return {**sizes, "kdim": kv[0], "vdim": kv[1]}


_Rule = Callable[[Any, LayerFacts], dict[str, Any]]
_RULES: tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...] = (
    ((_ConvNd,), _conv),
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((_NormBase,), _norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.PReLU,), _prelu),
    ((nn.RNNBase,), _rnn),
    ((nn.RNNCellBase,), _rnn_cell),
    ((nn.MultiheadAttention,), _multihead),
)
