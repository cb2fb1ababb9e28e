"""Train and eval mode of modules and of exported graphs, and the way from a program to a trainable module and back."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgepress.targets.errors import TrainingError

#: What aten ops call the argument by which their behaviour in training differs: dropouts, recurrent nets and batch norm, instance norm.
_MODE_ARGUMENTS = ("train", "training", "use_input_stats")


def set_training(module: nn.Module, training: bool) -> None:
    """Switch a module between train and eval mode, exported graphs in it or as a whole included.

    A plain module gets `.train(training)`. In an exported graph, which has no such switch, the mode arguments of batch and instance norms,
    dropouts and recurrent nets are set, with everything else about them as it was (torchao's `move_exported_model_to_train` gives every
    batch norm torch's default epsilon and momentum and every dropout p = 0.5). Running statistics then update in place as in eager mode,
    except where the norm was exported with momentum 0, which is also how export writes `momentum=None`: such a norm keeps its statistics
    and normalises with them. Attention's dropout was fixed by export and stays off.
    """
    if isinstance(module, GraphModule):
        _switch(module, training)
    elif not any(isinstance(part, GraphModule) for part in module.modules()):
        module.train(training)
        return
    module.training = training
    for child in module.children():
        set_training(child, training)


def _switch(module: GraphModule, training: bool) -> None:
    changed = [_set_mode(node, training) for node in module.graph.nodes if node.op == "call_function"]
    if any(changed):
        module.recompile()


def _set_mode(node: Node, training: bool) -> bool:
    """Set one node's mode argument; did that change it?"""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    names = [argument.name for argument in arguments]
    position = next((i for i, name in enumerate(names) if name in _MODE_ARGUMENTS), None)
    if position is None:
        return False
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if "running_mean" in names and (given.get("running_mean") is None or given.get("momentum") == 0):
        return False
    if given.get(names[position], arguments[position].default_value) == training:
        return False
    if position < len(node.args):
        node.update_arg(position, training)
    else:
        node.update_kwarg(names[position], training)
    return True


def trainable(program: ExportedProgram) -> GraphModule:
    """A copy of the program as a module whose parameters take gradients, in eval mode; `program` keeps its own weights.

    Input shapes are not checked against the program's any more: a batch of another size than it was exported with is the trainer's
    responsibility.
    """
    module = copy.deepcopy(program.module(check_guards=False))
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    set_training(module, False)
    return module


def to_program(module: nn.Module, like: ExportedProgram) -> ExportedProgram:
    """The weights and running statistics of a module made by `trainable` in a program with the graph and signature of the one it was made
    from.

    Args:
        module: its state must have the names and shapes of `like`'s; it may be in train mode, the program is as `like` is.
        like: gives everything but the values; is left as it was.

    Raises:
        TrainingError: a tensor is missing or has another shape.
    """
    state = module.state_dict()
    values: dict[str, torch.Tensor] = {}
    for name, old in like.state_dict.items():
        if name not in state or state[name].shape != old.shape:
            found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise TrainingError(
                f"{name!r} of the trained module {found}",
                f"the program has {tuple(old.shape)}",
                "Pass the program the module was made from.",
            )
        tensor = state[name].detach().to(device=old.device, dtype=old.dtype).clone(memory_format=torch.contiguous_format)
        values[name] = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    return ExportedProgram(
        root=like.graph_module,
        graph=like.graph,
        graph_signature=like.graph_signature,
        state_dict=values,
        range_constraints=like.range_constraints,
        module_call_graph=like.module_call_graph,
        example_inputs=like.example_inputs,
        constants=like.constants,
        verifiers=like.verifiers,
    )
