"""Batch norms, and products and sums per channel behind a layer, become its weight and bias."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import attribute, constant, is_float, op_name, set_attribute, value_of

aten = torch.ops.aten
_FOLDABLE = frozenset(["conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
#: The smallest factor that is folded without a sum behind it.
_SMALLEST = 1 / 16


def fold_batch_norms(module: GraphModule) -> None:
    """conv / linear / transposed conv followed by an eval-mode batch norm becomes one op (Jacob et al. 2018, section 3.2).

    Where others read the layer too, the batch norm becomes a product and a sum.
    """
    for node in list(module.graph.nodes):
        norm = _single_result(module, node)
        if norm is None or norm.args[0].op != "call_function" or norm.args[5]:
            continue
        head = norm.args[0]
        affine = _affine(module, norm) if op_name(head) in _FOLDABLE else None
        if affine is None:
            continue
        channels_last = op_name(head) == "linear" and value_of(head).dim() > 2  # a batch norm's are dimension 1
        if len(head.users) == 1 and not channels_last and _fold(module, head, *affine):
            norm.replace_all_uses_with(head)
            head.meta["val"] = value_of(norm)
        else:
            norm.replace_all_uses_with(_written_out(module, norm, *affine))
        module.graph.erase_node(norm)


def fold_factors(module: GraphModule) -> None:
    """What a layer alone feeds and multiplies by a constant per channel, adds one to, or both, becomes its weight and bias.

    Frozen batch norms of detectors are written so, and layer scale (Touvron et al. 2021, section 3). A factor alone that is small stays:
    half precision, in which Core ML keeps scales, has no digits left for those of the weights. So does a weight that layers share.
    """
    for head in list(module.graph.nodes):
        if op_name(head) in _FOLDABLE and len(head.args[1].users) == 1:
            while _fold_behind(module, head):
                pass


def _fold_behind(module: GraphModule, head: Node) -> bool:
    """Fold the product behind a layer, the sum behind that, or both; False where there is nothing to fold."""
    product, factor = _by_channel(module, head, head, "mul")
    total, shift = _by_channel(module, head, product or head, "add")
    behind = [node for node in (product, total) if node is not None]
    small = factor is not None and total is None and bool(factor.abs().min() < _SMALLEST)
    if not behind or small:
        return False
    one = torch.ones_like(factor if factor is not None else shift)
    if not _fold(module, head, one if factor is None else factor, torch.zeros_like(one) if shift is None else shift):
        return False
    _skip(module, head, *behind)
    return True


def _by_channel(module: GraphModule, layer: Node, source: Node, name: str) -> tuple[Node | None, Any]:
    """The only reader of a node with the layer's channels, if it multiplies it by a constant per channel or adds one; and that, (channels,)
    in float64."""
    node = next(iter(source.users)) if len(source.users) == 1 else None
    if node is None or op_name(node) != name or node.kwargs or not is_float(node):
        return None, None
    value = next((value for other in node.args[:2] if (value := constant(module, other)) is not None), None)
    if value is None:
        return None, None
    whole = value_of(source)
    if op_name(layer) != "linear" and whole.dim() != value_of(layer.args[1]).dim():
        return None, None  # a convolution of one sample, without a dimension for it
    wide = [1] * (whole.dim() - value.dim()) + list(value.shape)
    channel = whole.dim() - 1 if op_name(layer) == "linear" else 1
    fits = len(wide) == whole.dim() and wide[channel] == whole.shape[channel] == value.numel() and value_of(node).dtype == whole.dtype
    return (node, value.detach().double().flatten()) if fits else (None, None)


def _skip(module: GraphModule, head: Node, *behind: Node) -> None:
    """Let what reads the last node read the layer."""
    head.meta["val"] = value_of(behind[-1])
    behind[-1].replace_all_uses_with(head)
    for node in reversed(behind):
        module.graph.erase_node(node)


def _single_result(module: GraphModule, node: Node) -> Node | None:
    """A batch norm that returns a tensor, put in the place of one that returns a tuple; None for other ops and where more of it is read."""
    if op_name(node) != "_native_batch_norm_legit_no_training":
        return node if op_name(node) == "batch_norm" else None
    users = list(node.users)
    if len(users) != 1 or users[0].target is not operator.getitem or users[0].args[1] != 0:
        return None
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    with module.graph.inserting_before(node):
        norm = module.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, epsilon, False), name=f"{node.name}_output"
        )
    norm.meta = {**node.meta, "val": value_of(users[0])}
    users[0].replace_all_uses_with(norm)
    for old in (users[0], node):
        module.graph.erase_node(old)
    return norm


def _affine(module: GraphModule, norm: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a batch norm multiplies by, gamma / sqrt(variance + epsilon), and adds, (channels,) in float64; None where not constant."""
    mean, variance = constant(module, norm.args[3]), constant(module, norm.args[4])
    if mean is None or variance is None:
        return None
    gamma, beta = constant(module, norm.args[1]), constant(module, norm.args[2])
    scale = (gamma.double() if gamma is not None else 1.0) / torch.sqrt(variance.double() + norm.args[7])
    return scale, (beta.double() if beta is not None else 0.0) - mean.double() * scale


def _fold(module: GraphModule, head: Node, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    """Scale the weight of `head` per output channel and shift its bias, in float64."""
    weight = constant(module, head.args[1])
    bias_node = head.args[2] if len(head.args) > 2 else None
    bias = constant(module, bias_node)
    if weight is None or (bias_node is not None and bias is None):
        return False
    if bias is not None:
        shift = shift + bias.double() * scale
    replace_weight(module, head, _scaled(head, weight, scale).to(weight.dtype), shift.to(weight.dtype))
    return True


def _written_out(module: GraphModule, norm: Node, scale: torch.Tensor, shift: torch.Tensor) -> Node:
    """A batch norm as a product and a sum: what prepares a graph for quantization would fold it into a layer that others read too."""
    x = norm.args[0]
    dtype, made = value_of(x).dtype, x
    for target, name, constant_ in ((aten.mul.Tensor, "scale", scale), (aten.add.Tensor, "shift", shift)):
        wide = constant_.to(dtype).reshape(-1, *[1] * (value_of(x).dim() - 2))
        factor = constant_node(module, norm, f"{norm.name}.{name}", wide)
        with module.graph.inserting_before(norm):
            made = module.graph.call_function(target, (made, factor))
        made.meta["val"] = value_of(x)
    return made


def _scaled(head: Node, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply the output channels of a weight: dimension 0, or (groups, 1) of a transposed convolution's (in, out / groups)."""
    wide = weight.double()
    if not op_name(head).startswith("conv_transpose"):
        return wide * scale.reshape(-1, *[1] * (wide.dim() - 1))
    groups = head.args[6] if len(head.args) > 6 else head.kwargs.get("groups", 1)
    split = wide.reshape(groups, -1, *wide.shape[1:])
    return (split * scale.reshape(groups, 1, -1, *[1] * (wide.dim() - 2))).reshape(wide.shape)


def replace_weight(module: GraphModule, head: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give `head` a weight and bias of its own; a weight that other nodes share is left to them."""
    name = str(head.args[1].target) if len(head.args[1].users) == 1 else f"{head.name}.weight"
    stem = name.removesuffix(".weight").replace(".", "_") if not name.endswith(".weight") else name.removesuffix(".weight")
    arguments: list[Any] = list(head.args)
    arguments[1] = constant_node(module, head, name, weight)
    if bias is not None:
        bias_node = head.args[2] if len(head.args) > 2 else None
        bias_name = str(bias_node.target) if bias_node is not None and len(bias_node.users) == 1 else f"{stem}.bias"
        arguments[2:3] = [constant_node(module, head, bias_name, bias)]
    head.args = tuple(arguments)


def constant_node(module: GraphModule, head: Node, name: str, tensor: torch.Tensor) -> Node:
    """A new constant before `head`, under this name where nobody else reads one of it."""
    taken = any(node.op == "get_attr" and node.target == name and set(node.users) - {head} for node in module.graph.nodes)
    name = f"{head.name}_{name.rsplit('.', 1)[-1]}" if taken else name
    set_attribute(module, name, tensor)
    with module.graph.inserting_before(head):
        node = module.graph.create_node("get_attr", name, name=name.replace(".", "_"))
    mode = getattr(value_of(head), "fake_mode", None)
    node.meta["val"] = mode.from_tensor(attribute(module, name), static_shapes=True) if mode else tensor
    return node
