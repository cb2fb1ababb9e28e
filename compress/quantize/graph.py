"""What the nodes of an exported graph are: their kind, their tensors, and where they come from."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

#: Name of an aten op (without overload) -> kind of op the quantization rules speak of (`edgepress.targets.rules.OP_KINDS`).
KINDS: dict[str, str] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "conv_transpose"),
    "linear": "linear",
    **dict.fromkeys(("matmul", "bmm", "mm"), "matmul"),
    "add": "add",
    "mul": "mul",
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "amax"), "max_pool"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), "avg_pool"),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), "avg_pool"),
    "mean": "mean",
    **dict.fromkeys(("softmax", "_softmax"), "softmax"),
    "embedding": "embedding",
    "batch_norm": "batch_norm",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "leaky_relu": "leaky_relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "tanh": "tanh",
}
#: Ops whose output holds every value of their input and nothing else.
SAME_VALUES = frozenset(
    [
        "reshape",
        "view",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "movedim",
        "swapaxes",
        "numpy_T",
        "expand",
        "expand_as",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "channel_shuffle",
        "native_channel_shuffle",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "repeat_interleave",
        "tile",
        "roll",
        "flip",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "view_as",
        "reshape_as",
    ]
)
#: Ops whose output holds some values of their input (and zeros).
SOME_VALUES = frozenset(
    ["slice", "select", "narrow", "pad", "constant_pad_nd", "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "index_select"]
)
#: Ops that return several pieces of their input; `operator.getitem` takes one.
PIECES = frozenset(["chunk", "split", "split_with_sizes", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split"])
#: Activations that a kernel applies before it rounds its output.
ACTIVATIONS = frozenset(["relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"])
#: Ops with a weight or two factors, the ones that cost time.
HEAVY = frozenset({"conv", "conv_transpose", "linear", "matmul"})
#: Key in a node's meta: the range (low, high) of a tensor that smoothing made, which calibration never saw.
RANGE = "edgepress.range"
#: Key in the meta of an op that no scheme rounds: the reason.
FLOAT = "edgepress.float"
#: Key in a layer's meta: the scale of a weight that an algorithm chose, which is on its grid already.
WEIGHT_SCALE = "edgepress.weight_scale"


def op_name(node: Node) -> str:
    """`conv2d` of `aten.conv2d.default`; the bare function name of a Python function; the op code of anything else."""
    if node.op != "call_function":
        return str(node.op)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def root_of(node: Node) -> Node:
    """The tensor whose values a node holds in another shape, itself where it makes new ones."""
    while node.op == "call_function" and op_name(node) in SAME_VALUES:
        node = node.args[0]
    return node


def kind_of(node: Node) -> str | None:
    """The kind the rules know this node by; `shape` for ops that move values without changing them; None for any other op, and
    for one that no scheme rounds."""
    if node.op != "call_function" or FLOAT in node.meta:
        return None
    if node.target is operator.getitem:
        return "shape" if isinstance(node.args[0], Node) and op_name(node.args[0]) in PIECES else None
    name = op_name(node)
    if name in SAME_VALUES or name in SOME_VALUES or name in PIECES:
        return "shape" if _keeps_values(node, name) else None
    if (name == "add" and node.kwargs.get("alpha", 1) != 1) or (name == "batch_norm" and node.args[5]):  # of its own statistics
        return None
    return KINDS.get(name)


def _keeps_values(node: Node, name: str) -> bool:
    """Padding with anything but zeros, or clamping by tensors, is arithmetic."""
    if name == "pad" and (len(node.args) < 3 or node.args[2] == "constant"):
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        return value is None or value == 0
    if name == "constant_pad_nd":
        return len(node.args) < 3 or node.args[2] == 0
    if name in ACTIVATIONS:
        return not any(isinstance(argument, Node) for argument in node.args[1:])
    return True


def value_of(node: Node) -> Any:
    """The fake tensor (or list of them, or number) that export recorded for a node; None where it recorded none."""
    return node.meta.get("val")


def is_float(node: Any) -> bool:
    """Does the node produce one floating-point tensor?"""
    value = value_of(node) if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def attribute(module: GraphModule, name: str) -> torch.Tensor:
    """The parameter or buffer that a `get_attr` node names."""
    owner: Any = module
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


def set_attribute(module: GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Register a buffer under a dotted name, making the modules on the way."""
    *path, last = name.split(".")
    owner: Any = module
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, last):
        delattr(owner, last)
    owner.register_buffer(last, tensor.detach())


def constant(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor of a `get_attr` node, None for any other node."""
    if isinstance(node, Node) and node.op == "get_attr":
        value = attribute(module, str(node.target))
        return value if isinstance(value, torch.Tensor) else None
    return None


def new_constant(module: GraphModule, name: str, tensor: torch.Tensor, like: Node) -> Node:
    """A `get_attr` node for a new tensor, at the graph's insertion point; `like` is any node with a fake value."""
    set_attribute(module, name, tensor)
    made = module.graph.create_node("get_attr", name, name=name)
    made.meta["val"] = value_of(like).fake_mode.from_tensor(tensor, static_shapes=True)
    return made


def evaluate(node: Node, values: Mapping[Node, Any]) -> Any:
    """Run a node's op on values."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda item: values[item])
    return node.target(*args, **kwargs)


def answers_of(module: GraphModule) -> list[Node]:
    """The float tensors that a model answers; where it answers no floats, those that its numbers (of classes, of tokens) are chosen by."""
    waiting = list(next(node for node in module.graph.nodes if node.op == "output").all_input_nodes)
    found = [node for node in waiting if is_float(node)]
    if found:
        return found
    for node in waiting:  # grows
        inputs = [item for item in node.all_input_nodes if item.op == "call_function"]
        found += [item for item in inputs if is_float(item) and item not in found]
        waiting += [item for item in inputs if not is_float(item) and item not in waiting]
    return found


def layer_of(node: Node) -> str:
    """Where the user's model makes this node: the dotted path of the innermost module, or the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry and entry[0]]
    path = paths[-1] if paths else ""
    return path.replace("L['self'].", "").replace("L['self']", "") or node.name
