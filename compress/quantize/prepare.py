"""From an exported program to the canonical float graph: batch norms folded, dropout and guards gone, no op that writes in place.

The same program always gives the same node names, so statistics keyed by node name fit every later rendering.
"""

from __future__ import annotations

import operator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.portable import portable
from edgepress.compress.quantize.attention import decomposable, fold_attention_scales
from edgepress.compress.quantize.attention import decompose_attention as _decompose_attention
from edgepress.compress.quantize.constants import fold_constants
from edgepress.compress.quantize.expansions import drop_expansions
from edgepress.compress.quantize.graph import attribute, constant, is_float, op_name, set_attribute, value_of
from edgepress.compress.quantize.neighbours import merge_neighbours
from edgepress.compress.quantize.windows import merge_moved_dimensions

aten = torch.ops.aten
_DROPOUT = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"])
_NOTHING = frozenset(["alias", "detach", "lift_fresh_copy"])
_CHECKS = frozenset(["_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"])
#: Programs that write in place -> the same without; it takes longer than all else that is done to a small model's graph.
_rewritten: WeakKeyDictionary[torch.export.ExportedProgram, torch.export.ExportedProgram] = WeakKeyDictionary()
_FOLDABLE = frozenset(["conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])


def float_module(program: torch.export.ExportedProgram) -> GraphModule:
    """The float model as exporters want it: functional, constants computed and batch norms folded, inference only.

    Args:
        program: in eval mode; its inputs and outputs are kept, a dynamic batch included.

    Returns:
        A module with the same inputs and outputs; outputs equal up to float rounding of the folded batch norms.
    """
    module: GraphModule = _functional(program).module(check_guards=False)
    _drop_inference_noise(module)
    fold_constants(module)
    _products_to_linear(module)
    _fold_batch_norms(module)
    merge_moved_dimensions(module)
    merge_neighbours(module)
    drop_expansions(module)
    return finish(module)


def plain_attention(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram | GraphModule:
    """The float model with its attention written as matmul, (mask), softmax, matmul.

    torch's lowering of the fused op to ONNX turns the keys round by way of their shape, and looks for NaN after softmax, which its own
    finite mask never gives: ops that every inference pays for. A row of masked keys alone is 0 in PyTorch; neither lowering keeps that.

    Returns:
        `program` itself where there is nothing to write out.
    """
    if not decomposable(program.graph_module):
        return program
    module = float_module(program)
    _decompose_attention(module)
    return finish(module)


def canonical_module(program: torch.export.ExportedProgram, decompose_attention: bool = True) -> GraphModule:
    """The float graph that statistics and placement speak of.

    Args:
        program: see `float_module`.
        decompose_attention: write `scaled_dot_product_attention` as matmul, softmax, matmul. The last matmul keeps the name of the
            fused op, so statistics taken on the decomposed graph also fit the fused one.
    """
    module = float_module(program)
    _divisions_to_products(module)
    fold_attention_scales(module)
    if decompose_attention:
        _decompose_attention(module)
    return finish(module)


def finish(module: GraphModule) -> GraphModule:
    """Take out nodes and tensors that nothing reads any more, check the graph and recompile it; returns the module."""
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    _drop_unused_tensors(module)
    module.graph.lint()
    module.recompile()
    return module


def _drop_unused_tensors(module: GraphModule) -> None:
    """Weights that folding replaced would otherwise be stored with the artifact."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for owner_name, owner in list(module.named_modules()):
        prefix = f"{owner_name}." if owner_name else ""
        for store in (owner._parameters, owner._buffers):
            for name in [name for name in store if prefix + name not in used]:
                del store[name]


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Ops that write in place make a quantize node read a value that changes later; torch rewrites them, once for each program."""
    found = _rewritten.get(program)
    if found is not None:
        return found
    writes = any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in program.graph.nodes
        if node.op == "call_function" and op_name(node) not in ("batch_norm",)
    )
    if not writes:
        return program
    _rewritten[program] = portable(program.run_decompositions({}))
    return _rewritten[program]


def _drop_inference_noise(module: GraphModule) -> None:
    """Dropout in eval mode, shape guards, metadata assertions, casts to the same type and cuts of nothing do nothing.

    OpenVINO 2026.4.1 crashes on padding by nothing between integers, which nets write whose windows fit the image.
    """
    for node in list(module.graph.nodes):
        name = op_name(node)
        if node.op == "call_module" or name in _CHECKS:
            if not node.users:
                module.graph.erase_node(node)
        elif name in _NOTHING or (name in _DROPOUT and name != "native_dropout") or _same_type(node, name) or _same_size(node, name):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _same_type(node: Node, name: str) -> bool:
    """A cast that changes neither type nor device."""
    if name not in ("to", "_to_copy", "type_as") or not node.args or not isinstance(node.args[0], Node):
        return False
    before, after = value_of(node.args[0]), value_of(node)
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and before.dtype == after.dtype
        and before.device == after.device
    )


def _same_size(node: Node, name: str) -> bool:
    """Padding by nothing, or a slice as large as what it is cut from."""
    if name in ("pad", "constant_pad_nd"):
        return all(isinstance(amount, int) and amount == 0 for amount in node.args[1])
    return name == "slice" and [*map(str, value_of(node).shape)] == [*map(str, value_of(node.args[0]).shape)]


def _divisions_to_products(module: GraphModule) -> None:
    """x / c is x * (1 / c): one kind of op less to place (attention scores are often divided)."""
    for node in module.graph.nodes:
        if node.target is aten.div.Tensor and is_float(node) and isinstance(node.args[1], float | int) and node.args[1] and not node.kwargs:
            node.target = aten.mul.Tensor
            node.args = (node.args[0], 1.0 / node.args[1])


def _products_to_linear(module: GraphModule) -> None:
    """A product with a constant matrix, a bias added or not, is a linear layer: `addmm` and `x @ w`, as GPT-2 and CLIP write them."""
    for node in list(module.graph.nodes):
        name = op_name(node)
        if node.kwargs or name not in ("addmm", "matmul", "mm"):
            continue
        x, factor = node.args[-2:]
        bias = node.args[0] if name == "addmm" else None
        weight, added = constant(module, factor), constant(module, bias)
        if weight is None or weight.dim() != 2 or not is_float(x) or x.op == "get_attr" or value_of(x).dim() < 2:
            continue
        if bias is not None and (added is None or added.shape != weight.shape[1:]):
            continue
        made = _constant_node(module, node, f"{node.name}.weight", weight.detach().t().contiguous())
        node.target, node.args = aten.linear.default, (x, made) if bias is None else (x, made, bias)


def _fold_batch_norms(module: GraphModule) -> None:
    """conv / linear / transposed conv followed by an eval-mode batch norm becomes one op (Jacob et al. 2018, section 3.2).

    Where others read the layer too, the batch norm becomes a product and a sum.
    """
    for node in list(module.graph.nodes):
        name = op_name(node)
        if name not in ("batch_norm", "_native_batch_norm_legit_no_training") or node.args[0].op != "call_function":
            continue
        if name == "batch_norm" and node.args[5]:
            continue
        head = node.args[0]
        result = node if name == "batch_norm" else _only_first(node)
        affine = _affine(module, node) if op_name(head) in _FOLDABLE else None
        if affine is None or result is None:
            continue
        channels_last = op_name(head) == "linear" and value_of(head).dim() > 2  # a batch norm's are dimension 1
        if len(head.users) == 1 and not channels_last and _fold(module, head, *affine):
            result.replace_all_uses_with(head)
            head.meta["val"] = value_of(result) if isinstance(value_of(result), torch.Tensor) else value_of(head)
        else:
            result.replace_all_uses_with(_written_out(module, node, *affine))
        module.graph.erase_node(result)
        if result is not node:
            module.graph.erase_node(node)


def _only_first(node: Node) -> Node | None:
    """The single user of a batch norm that returns a tuple, when it takes the normalised tensor."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0 else None


def _affine(module: GraphModule, norm: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a batch norm multiplies by, gamma / sqrt(variance + epsilon), and adds, (channels,) in float64; None where not constant."""
    mean, variance = constant(module, norm.args[3]), constant(module, norm.args[4])
    if mean is None or variance is None:
        return None
    gamma, beta = constant(module, norm.args[1]), constant(module, norm.args[2])
    epsilon = norm.args[7] if op_name(norm) == "batch_norm" else norm.args[6]
    scale = (gamma.double() if gamma is not None else 1.0) / torch.sqrt(variance.double() + epsilon)
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
        factor = _constant_node(module, norm, f"{norm.name}.{name}", wide)
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
    arguments[1] = _constant_node(module, head, name, weight)
    if bias is not None:
        bias_node = head.args[2] if len(head.args) > 2 else None
        bias_name = str(bias_node.target) if bias_node is not None and len(bias_node.users) == 1 else f"{stem}.bias"
        arguments[2:3] = [_constant_node(module, head, bias_name, bias)]
    head.args = tuple(arguments)


def _constant_node(module: GraphModule, head: Node, name: str, tensor: torch.Tensor) -> Node:
    taken = any(node.op == "get_attr" and node.target == name and set(node.users) - {head} for node in module.graph.nodes)
    name = f"{head.name}_{name.rsplit('.', 1)[-1]}" if taken else name
    set_attribute(module, name, tensor)
    with module.graph.inserting_before(head):
        node = module.graph.create_node("get_attr", name, name=name.replace(".", "_"))
    mode = getattr(value_of(head), "fake_mode", None)
    node.meta["val"] = mode.from_tensor(attribute(module, name), static_shapes=True) if mode else tensor
    return node
