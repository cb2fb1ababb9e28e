"""A pruned program as the user's own class: a fresh instance with smaller tensors and attributes that agree with them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.compress.project.outputs import flatten, largest_error
from edgepress.compress.prune.class_attributes import Change, Choice, Size, choices, unit_counts
from edgepress.compress.prune.layer_sizes import LayerFacts, Unfit, groups_in, layer_attributes
from edgepress.compress.prune.running import failure, train_step, watching
from edgepress.compress.prune.structure import Structure, analyse
from edgepress.compress.resize import Snapshot, resize, tensors_of

#: Outputs of the class and of the program may differ by this, relative to the largest of each output.
TOLERANCE = 1e-4
#: Combinations of attribute values that are tried.
_TRIALS = 256
_PREFIX = "model."  # what the wrapper that flattens outputs puts before every name


@dataclass(frozen=True)
class Rebuilt:
    """The outcome of `rebuild`.

    Attributes:
        module: the user's module with smaller tensors, in eval mode; None where its class cannot hold them.
        why: one sentence on what did not fit; empty where it does.
        attributes: every attribute that was changed: dotted path of the module -> name -> int or list of int. JSON-able.
    """

    module: nn.Module | None
    why: str = ""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def rebuild(
    model: nn.Module, smaller: ExportedProgram, structure: Structure, removed: np.ndarray | None, inputs: Sequence[Tensor]
) -> Rebuilt:
    """Give an instance of the user's class the smaller program's tensors, and make its attributes agree with them.

    Attributes of torch's layers follow from their tensors. Those of the user's modules are searched: values that equalled a size that has
    changed are tried, the likeliest first and one rule for all modules of a class, until the outputs are the program's at batch sizes 1
    and 2 and a training step runs.

    Args:
        model: fresh from the user's factory, eager; it is changed in place, and left as it was where its class cannot hold the sizes.
        smaller: what `remove` made of the program of such a model; names may have the prefix of `FlatOutputs`.
        structure: of the program of the whole model.
        removed: bool (structure.unit_count,); None where units were removed in several steps: the smaller program is then analysed.
        inputs: real inputs, one tensor (n >= 1, ...) per input.
    """
    snapshot = Snapshot(model)
    try:
        with torch.random.fork_rng(devices=[]):
            attributes = _Search(model, smaller, structure, removed, inputs).run(snapshot)
    except Unfit as unfit:
        snapshot.restore()
        return Rebuilt(None, str(unfit))
    return Rebuilt(model.eval(), "", attributes)


class _Search:
    """One rebuild: what is known, what may be chosen, and the trials."""

    def __init__(
        self, model: nn.Module, smaller: ExportedProgram, structure: Structure, removed: np.ndarray | None, inputs: Sequence[Tensor]
    ) -> None:
        self.model, self.smaller, self.structure, self.removed = model, smaller, structure, removed
        self.prefix = _prefix(model, smaller)
        self.tensors = _tensors(model, smaller, self.prefix)
        self.counts = self._counts()
        self.batches = _batches(inputs, smaller)
        with torch.no_grad():
            self.expected = [flatten(smaller.module()(*batch)) for batch in self.batches]
        self.trains = False

    def run(self, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Resize the model; returns the attributes that were changed.

        Raises:
            Unfit: nothing that was tried gives the program's outputs.
        """
        old = {name: tensor.shape for name, tensor in tensors_of(self.model).items()}
        layers = self._layers(snapshot)
        open_ = choices(self.model, [*self._sizes(old), *_layer_sizes(self.model, layers)])
        read = _read(self.model.eval(), self.batches[-1], open_)
        snapshot.restore()
        self.trains = self._trains()
        snapshot.restore()
        failed = ""
        for chosen in itertools.islice(_combinations(open_, read), _TRIALS):
            attributes = _joined(self.model, layers, open_, chosen)
            resize(self.model, self.tensors, attributes)
            why = self._misfit()
            snapshot.restore()
            if not why:
                resize(self.model, self.tensors, attributes)
                return attributes
            failed = failed or why
        raise Unfit(failed)

    def _trains(self) -> bool:
        """Does the whole model run a training step on this batch? (A batch norm takes no single value.)"""
        resize(self.model, tensors_of(self.model), {})  # copies, for running statistics are updated in place
        try:
            train_step(self.model, self.batches[-1])
        except Exception:  # the user's forward()
            return False
        return True

    def _counts(self) -> dict[tuple[str, int, str, int], Change]:
        """Units along a dimension, before and after; names without prefix."""
        before = unit_counts(self.structure)
        after = unit_counts(analyse(self.smaller)) if self.removed is None else unit_counts(self.structure, self.removed)
        # an axis of size 1 has no units
        return {(key[0].removeprefix(self.prefix), *key[1:]): Change(old, after.get(key, 1)) for key, old in before.items()}

    def _layers(self, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """The attributes of torch's layers that change."""
        groups = {name.removeprefix(self.prefix): value for name, value in groups_in(self.smaller).items()}
        resize(self.model, self.tensors, {})
        found = {}
        for path, layer in self.model.named_modules():
            facts = LayerFacts(path, groups.get(f"{path}.weight".lstrip(".")), self._heads(path))
            wanted = layer_attributes(layer, facts)
            changed = {name: value for name, value in wanted.items() if _plain(getattr(layer, name)) != value}
            if changed:
                found[path] = changed
        snapshot.restore()
        return found

    def _heads(self, path: str) -> int | None:
        for name in ("in_proj_weight", "q_proj_weight"):
            change = self.counts.get((f"{path}.{name}".lstrip("."), 0, "heads", -1))
            if change is not None:
                return change.new
        return None

    def _sizes(self, old: Mapping[str, Sequence[int]]) -> Iterator[Size]:
        """Every dimension of a tensor, and every count of units along one."""
        heads = {(name, dim) for name, dim, kind, _ in self.counts if kind in ("heads", "head_dims")}
        for name, shape in old.items():
            path, _, own = name.rpartition(".")
            new = self.tensors[name].shape if name in self.tensors else shape
            for dim, change in enumerate(map(Change, shape, new)):
                yield Size(path, f"{own}:{dim}", change, of_heads=(name, dim) in heads)
        for (name, dim, kind, which), change in self.counts.items():
            path, _, own = name.rpartition(".")
            yield Size(path, f"{own}:{dim}:{kind}:{which}", change, kind, (name, dim) in heads)

    def _misfit(self) -> str:
        """What is wrong with the model as it is now; empty where nothing is."""
        worst = 0.0
        try:
            self.model.eval()
            with torch.no_grad():
                for batch, expected in zip(self.batches, self.expected, strict=True):
                    got = flatten(self.model(*batch))
                    if [o.shape for o in got] != [o.shape for o in expected]:
                        return "the class returns outputs of other shapes than the smaller program"
                    worst = max(worst, largest_error(got, expected))
            if worst > TOLERANCE:
                return f"outputs differ by {worst:.1e} with the smaller sizes: the class's code depends on the old ones"
            if self.trains:
                train_step(self.model, self.batches[-1])
        except Exception as error:  # the user's forward()
            return failure(self.model, error)
        return ""


def _prefix(model: nn.Module, program: ExportedProgram) -> str:
    own, theirs = tensors_of(model), program.state_dict
    plain = sum(name in own for name in theirs)
    return _PREFIX if sum(name.removeprefix(_PREFIX) in own for name in theirs if name.startswith(_PREFIX)) > plain else ""


def _tensors(model: nn.Module, program: ExportedProgram, prefix: str) -> dict[str, Tensor]:
    """The program's tensors by the model's names; names of one tensor get the value that the graph reads.

    Raises:
        Unfit: the names or numbers of dimensions are not the model's, or tied tensors are not one in the program.
    """
    own = tensors_of(model)
    stored = {n.removeprefix(prefix): t for n, t in {**program.constants, **program.state_dict}.items() if isinstance(t, Tensor)}
    foreign = [name.removeprefix(prefix) for name in program.state_dict if name.removeprefix(prefix) not in own]
    if foreign:
        raise Unfit(f"the class has no {foreign[0]!r}, which the program reads")
    missing = [name for name, _ in model.named_parameters() if name not in stored]
    if missing:
        raise Unfit(f"the program has no {missing[0]!r} any more, which the class still reads")
    targets = {s.arg.name: str(s.target) for s in program.graph_signature.input_specs if s.target is not None}
    read = {targets[node.name].removeprefix(prefix) for node in program.graph.nodes if node.name in targets and node.users}
    values: dict[int, tuple[str, Tensor]] = {}
    for name in sorted(own.keys() & stored.keys(), key=lambda name: name not in read):
        first, value = values.setdefault(id(own[name]), (name, stored[name]))
        if name in read and (value.shape != stored[name].shape or not torch.equal(value, stored[name])):
            raise Unfit(f"{first!r} and {name!r} are one tensor in the class, and differ in the program")
        if own[name].ndim != value.ndim or own[name].dtype != value.dtype:
            raise Unfit(
                f"{name!r} is {tuple(value.shape)} {value.dtype} in the program, {tuple(own[name].shape)} {own[name].dtype} in the class"
            )
    return {name: values[id(tensor)][1] for name, tensor in own.items() if id(tensor) in values}


def _read(model: nn.Module, batch: Sequence[Tensor], open_: Sequence[Choice]) -> list[bool]:
    """Which choices the model's code reads in a forward pass.

    Raises:
        Unfit: the pass fails.
    """
    try:
        with watching(model, {choice.kind for choice in open_}) as names, torch.no_grad():
            model(*batch)
    except Exception as error:  # the user's forward()
        raise Unfit(f"the class does not run on these inputs: {failure(model, error)}") from error
    return [choice.name in names[choice.kind] for choice in open_]


def _batches(inputs: Sequence[Tensor], program: ExportedProgram) -> list[list[Tensor]]:
    """The inputs at batch sizes 1 and 2, or at the one a program of a fixed batch takes."""
    fixed = None if program.range_constraints or not program.example_inputs else len(program.example_inputs[0][0])
    return [[tensor[torch.arange(size) % len(tensor)] for tensor in inputs] for size in ((1, 2) if fixed is None else (fixed,))]


def _layer_sizes(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> Iterator[Size]:
    """Attributes of torch's layers that no dimension shows, e.g. the channels of a grouped convolution."""
    for path, values in layers.items():
        for name, new in values.items():
            if isinstance(new, int):
                yield Size(path, name, Change(getattr(model.get_submodule(path), name), new))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _combinations(open_: Sequence[Choice], read: Sequence[bool]) -> Iterator[tuple[int, ...]]:
    """Which option each choice takes, the likeliest combinations first; what no code reads always takes its first."""
    start = (0,) * len(open_)
    queue, seen = [(0, start)], {start}
    while queue:
        total, chosen = heapq.heappop(queue)
        yield chosen
        for i, choice in enumerate(open_):
            following = (*chosen[:i], chosen[i] + 1, *chosen[i + 1 :])
            if read[i] and following[i] < len(choice.options) and following not in seen:
                seen.add(following)
                heapq.heappush(queue, (total + 1, following))


def _joined(
    model: nn.Module, layers: Mapping[str, Mapping[str, Any]], open_: Sequence[Choice], chosen: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """The attributes of layers and the chosen ones of the user's modules, where they change."""
    joined = {path: dict(values) for path, values in layers.items()}
    for choice, option in zip(open_, chosen, strict=True):
        for path, value in zip(choice.paths, choice.options[option], strict=True):
            old = _plain(getattr(model.get_submodule(path), choice.name))
            known = joined.get(path, {}).get(choice.name, old)
            new = value if choice.position is None else [*known[: choice.position], value, *known[choice.position + 1 :]]
            if new != known:
                joined.setdefault(path, {})[choice.name] = new
    return joined
