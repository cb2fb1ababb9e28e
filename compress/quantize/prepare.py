"""From an exported program to the canonical float graph: batch norms folded, dropout and guards gone, no op that writes in place.

The same program always gives the same node names, so statistics keyed by node name fit every later rendering.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.portable import portable
from edgepress.compress.quantize.attention import decomposable, fold_attention_scales
from edgepress.compress.quantize.attention import decompose_attention as _decompose_attention
from edgepress.compress.quantize.complex_numbers import write_out_complex
from edgepress.compress.quantize.complex_parts import has_complex
from edgepress.compress.quantize.constants import fold_constants
from edgepress.compress.quantize.expansions import drop_expansions
from edgepress.compress.quantize.folding import fold_batch_norms, fold_factors
from edgepress.compress.quantize.graph import is_float, op_name, value_of
from edgepress.compress.quantize.magnified import keep_magnified
from edgepress.compress.quantize.neighbours import merge_neighbours
from edgepress.compress.quantize.products import products_to_linear
from edgepress.compress.quantize.repeats import merge_repeats
from edgepress.compress.quantize.windows import merge_moved_dimensions

aten = torch.ops.aten
_DROPOUT = frozenset(["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"])
_NOTHING = frozenset(["alias", "detach", "lift_fresh_copy"])
_CHECKS = frozenset(["_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"])
#: Programs that write in place -> the same without; it takes longer than all else that is done to a small model's graph.
_rewritten: WeakKeyDictionary[torch.export.ExportedProgram, torch.export.ExportedProgram] = WeakKeyDictionary()


def float_module(program: torch.export.ExportedProgram) -> GraphModule:
    """The float model as exporters want it: functional, constants computed, repeats merged, what is per channel in layers, inference only.

    Args:
        program: in eval mode; its inputs and outputs are kept, a dynamic batch included.

    Returns:
        A module with the same inputs and outputs; outputs equal up to float rounding of the folded batch norms.
    """
    module: GraphModule = _functional(program).module(check_guards=False)
    _drop_inference_noise(module)
    fold_constants(module)
    merge_repeats(module)
    write_out_complex(module)
    products_to_linear(module)
    fold_batch_norms(module)
    fold_factors(module)
    merge_moved_dimensions(module)
    merge_neighbours(module)
    drop_expansions(module)
    keep_magnified(module)
    return finish(module)


def plain_model(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram | GraphModule:
    """The float model with its attention written as matmul, (mask), softmax, matmul, and complex tensors as pairs of real ones.

    torch's lowering of fused attention to ONNX turns the keys round by way of their shape, and looks for NaN after softmax, which its own
    finite mask never gives: ops that every inference pays for. A row of masked keys alone is 0 in PyTorch; neither lowering keeps that.
    Of the runtimes that read ONNX one has its Fourier transform; OpenVINO 2026.4.1 gives wrong answers by it, or ends the process.

    Returns:
        `program` itself where there is nothing to write out.
    """
    if not (decomposable(program.graph_module) or has_complex(program.graph_module)):
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
    """Dropout in eval mode, shape guards, metadata assertions, casts to the same type, padding by nothing and slices of all do nothing.

    What is written in place to such a slice takes the tensor's place (GhostNet cuts maps to the channels it wants, and adds to them).
    OpenVINO 2026.4.1 crashes on the last between integers; nets write it whose windows fit the image.
    """
    for node in list(module.graph.nodes):
        name = op_name(node)
        if node.op == "call_module" or name in _CHECKS:
            if not node.users:
                module.graph.erase_node(node)
        elif name in _NOTHING or (name in _DROPOUT and name != "native_dropout") or _same_type(node, name) or _pads_nothing(node, name):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif name in ("slice", "slice_scatter") and _leaves_nothing_out(node, name):
            node.replace_all_uses_with(node.args[name == "slice_scatter"])
            module.graph.erase_node(node)


def _leaves_nothing_out(node: Node, name: str) -> bool:
    """Is the part that a slice takes, or that is written to one, as long as the whole?"""
    part, arguments = (node, node.args[1:]) if name == "slice" else (node.args[1], node.args[2:])
    dim = arguments[0] if arguments else 0
    whole, taken = (str(value_of(each).shape[dim]) for each in (node.args[0], part))  # an open batch is its name, which asks no question
    return whole == taken


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


def _pads_nothing(node: Node, name: str) -> bool:
    return name in ("pad", "constant_pad_nd") and all(isinstance(amount, int) and amount == 0 for amount in node.args[1])


def _divisions_to_products(module: GraphModule) -> None:
    """x / c is x * (1 / c): one kind of op less to place (attention scores are often divided)."""
    for node in module.graph.nodes:
        if node.target is aten.div.Tensor and is_float(node) and isinstance(node.args[1], float | int) and node.args[1] and not node.kwargs:
            node.target = aten.mul.Tensor
            node.args = (node.args[0], 1.0 / node.args[1])
