"""Calibration: one pass over samples, and what every float tensor of the graph held."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.quantize.batches import fitting, joined
from edgepress.compress.quantize.graph import SAME_VALUES, is_float, layer_of, op_name, root_of
from edgepress.compress.quantize.histogram import BINS, Histogram
from edgepress.compress.quantize.observers import OBSERVERS, WEIGHTED, Range, choose_range
from edgepress.compress.quantize.output_weights import SAMPLES, OutputWeights, scaled_histogram, weigh
from edgepress.compress.quantize.placement import place
from edgepress.compress.quantize.prepare import canonical_module
from edgepress.targets.errors import QuantizationError
from edgepress.targets.rules import QuantRules

_NUMBERS = ("minimum", "maximum", "moving_minimum", "moving_maximum")
_COUNTS = ("zeros", "infinities", "total")
_EMPTY = -(2**31)
_CORRECTION, _WEIGHTS, _CHANNEL_WEIGHTS = "correction/", "weights/", "channel-weights/"


@dataclass(frozen=True)
class Statistics:
    """What calibration saw, by node name of the canonical graph (attention written out).

    Attributes:
        observer: how ranges are chosen from the histograms, a key of `observers.OBSERVERS`.
        samples: how many samples were seen.
        histograms: node name -> histogram. A tensor that holds the values of another one in another shape has none of its own.
        channels: name of a tensor that linear layers read -> float64 (3, channels): minimum, maximum and mean square per channel.
        corrections: weights, biases and ranges chosen for one runtime and scheme by `layerwise.refine`; see
            `corrections.apply_corrections` and `sharing.RANGE_PART`.
        weights: what values weigh at the outputs; None unless ranges are chosen by that.
    """

    observer: str
    samples: int
    histograms: Mapping[str, Histogram]
    channels: Mapping[str, np.ndarray]
    corrections: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: OutputWeights | None = None

    def range_of(self, name: str, symmetric: bool) -> Range:
        """The range (low, high) that integers should cover for the tensor `name`, zero included."""
        weighted = self.weights.tensors.get(name) if self.weights else None
        return choose_range(weighted or self.histograms[name], self.observer, symmetric)

    def scaled_range(self, name: str, scale: np.ndarray, symmetric: bool) -> Range:
        """The range for the tensor `name` after its channels were divided by `scale`, float64 (channels,)."""
        channels = self.channels[name]
        weights = self.weights.channels.get(name) if self.weights else None
        if weights is None:
            return min(float((channels[0] / scale).min()), 0.0), max(float((channels[1] / scale).max()), 0.0)
        return choose_range(scaled_histogram(weights, channels, scale), self.observer, symmetric)

    def save(self, path: Path) -> None:
        """Write one safetensors file; the same statistics give the same bytes."""
        from safetensors.numpy import save_file

        names = sorted(self.histograms)
        rows = [self.histograms[name] for name in names]
        tensors = {
            "counts": np.stack([row.counts for row in rows]) if rows else np.zeros((0, 2 * BINS), dtype=np.int64),
            "exponents": np.array([_EMPTY if row.exponent is None else row.exponent for row in rows], dtype=np.int64),
            "numbers": np.array([[getattr(row, key) for key in _NUMBERS] for row in rows], dtype=np.float64),
            "totals": np.array([[getattr(row, key) for key in _COUNTS] for row in rows], dtype=np.int64),
            "channels": np.concatenate([np.zeros((3, 0)), *(self.channels[name] for name in sorted(self.channels))], axis=1),
        }
        tensors |= {f"{_CORRECTION}{name}": value for name, value in sorted(self.corrections.items())}
        if self.weights is not None:
            tensors |= {f"{_WEIGHTS}{name}": held.counts for name, held in sorted(self.weights.tensors.items())}
            tensors |= {f"{_CHANNEL_WEIGHTS}{name}": table for name, table in sorted(self.weights.channels.items())}
        widths = [(name, self.channels[name].shape[1]) for name in sorted(self.channels)]
        header = {"observer": self.observer, "samples": self.samples, "names": names, "channels": widths}
        header["weighted"] = self.weights is not None
        save_file(tensors, str(path), metadata={"edgepress.statistics": json.dumps(header, sort_keys=True)})

    @staticmethod
    def load(path: Path) -> Statistics:
        """The inverse of `save`.

        Raises:
            QuantizationError: the file is not one that `save` wrote.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads(file.metadata()["edgepress.statistics"])
                tensors = {key: file.get_tensor(key) for key in ("counts", "exponents", "numbers", "totals", "channels")}
                corrections, weighted, of_channels = (_under(prefix, file) for prefix in (_CORRECTION, _WEIGHTS, _CHANNEL_WEIGHTS))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise QuantizationError(f"{path} holds no calibration statistics", str(error), "Calibrate again.") from error
        histograms = {name: _row(tensors, index) for index, name in enumerate(header["names"])}
        ends = np.cumsum([width for _, width in header["channels"]], dtype=np.int64)[:-1]
        pieces = np.split(tensors["channels"], ends, axis=1) if header["channels"] else []
        channels = {name: piece for (name, _), piece in zip(header["channels"], pieces, strict=True)}
        of_tensors = {name: histograms[name].weighted(counts) for name, counts in weighted.items()}
        weights = OutputWeights(of_tensors, of_channels) if header["weighted"] else None
        return Statistics(header["observer"], header["samples"], histograms, channels, corrections, weights)


def _under(prefix: str, file: Any) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file whose names have a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118 (a file)


def _row(tensors: Mapping[str, np.ndarray], index: int) -> Histogram:
    exponent = int(tensors["exponents"][index])
    numbers = dict(zip(_NUMBERS, (float(v) for v in tensors["numbers"][index]), strict=True))
    totals = dict(zip(_COUNTS, (int(v) for v in tensors["totals"][index]), strict=True))
    return Histogram(tensors["counts"][index], None if exponent == _EMPTY else exponent, **numbers, **totals)  # type: ignore[arg-type]


def calibrate(
    program: torch.export.ExportedProgram,
    batches: Iterable[Sequence[Any]],
    observer: str = WEIGHTED,
    runtimes: Collection[QuantRules] | None = None,
) -> Statistics:
    """Run samples through the float model once and keep extremes of every float tensor, and a histogram where it may become integers.

    Where `observer` is `auto`, some of them are run once more with gradients, see `output_weights`.

    Args:
        program: float, eval mode.
        batches: tuples of positional inputs (torch tensors or numpy arrays), dimension 0 is the batch.
        observer: see `observers.OBSERVERS`.
        runtimes: whose integers the statistics are for; None counts the values of every tensor. A tensor that they never round has a
            range of its extremes.

    Returns:
        Statistics of a size that does not depend on the number of samples.

    Raises:
        QuantizationError: no samples, unknown observer, or an output that is NaN or +inf (the first layer that made one is named).
    """
    if observer not in OBSERVERS:
        raise QuantizationError(f"unknown observer {observer!r}", remedy=f"Use one of {', '.join(OBSERVERS)}.")
    module = canonical_module(program)
    recorder = _Recorder(module, None if runtimes is None else _rounded(module, runtimes))
    samples, kept = 0, []
    with torch.no_grad():
        for inputs in fitting(module, batches):
            recorder.run(*inputs)
            if observer == WEIGHTED and samples < SAMPLES:
                kept.append([item[: SAMPLES - samples].clone() for item in inputs])
            samples += len(inputs[0])
    if not samples:
        raise QuantizationError("calibration got no samples", remedy="Set data.calibration.samples to 1 or more.")
    channels = recorder.channels()
    weights = weigh(module, joined(kept), recorder.histograms, channels, samples) if observer == WEIGHTED else None
    return Statistics(observer, samples, recorder.histograms, channels, weights=weights)


def _rounded(module: GraphModule, runtimes: Collection[QuantRules]) -> set[str]:
    """The tensors that some runtime rounds in a static scheme if magnitudes allow it."""
    return {root_of(node).name for rules in runtimes for node in place(module, rules, "static", lambda _: 0.0).rounded}


class _Recorder(Interpreter):  # type: ignore[misc]
    """Runs a graph and adds every float tensor to its histogram; values are freed after their last use."""

    def __init__(self, module: GraphModule, counted: Collection[str] | None) -> None:
        super().__init__(module)
        self._counted = counted
        self.histograms: dict[str, Histogram] = {node.name: Histogram() for node in module.graph.nodes if recorded(node)}
        read = {node.args[0].name for node in module.graph.nodes if op_name(node) == "linear" and is_float(node.args[0])}
        self._extremes: dict[str, list[tuple[torch.Tensor, ...]]] = {name: [] for name in sorted(read)}
        self._rows: dict[str, int] = dict.fromkeys(self._extremes, 0)
        self._broken: tuple[Node, str] | None = None

    def channels(self) -> dict[str, np.ndarray]:
        """Minimum, maximum and mean square per channel of what linear layers read, where all of it is finite."""
        found = {}
        for name, [(low, high, squares)] in self._extremes.items():
            of_channels = torch.stack([low.double(), high.double(), squares / max(self._rows[name], 1)])
            if bool(torch.isfinite(of_channels).all()):
                found[name] = of_channels.numpy()
        return found

    def _add_channels(self, name: str, tensor: torch.Tensor) -> None:
        rows = tensor.reshape(-1, tensor.shape[-1])
        low, high = rows.amin(dim=0), rows.amax(dim=0)  # aminmax along a dimension takes ten times as long as both
        squares = rows.square().sum(dim=0).double()
        if self._extremes[name]:
            before = self._extremes[name].pop()
            low, high, squares = torch.minimum(before[0], low), torch.maximum(before[1], high), before[2] + squares
        self._extremes[name].append((low, high, squares))
        self._rows[name] += len(rows)

    def run_node(self, node: Node) -> Any:
        """Run one node and record its output."""
        result = super().run_node(node)
        histogram = self.histograms.get(node.name)
        if histogram is not None:
            before = histogram.infinities
            histogram.update(result, self._counted is None or node.name in self._counted)
            if histogram.infinities > before and self._broken is None and (what := _broken(result)):
                self._broken = node, what
        if node.name in self._extremes:
            self._add_channels(node.name, result)
        if node.op == "output":
            self._check(torch.utils._pytree.tree_leaves(result))
        return result

    def _check(self, outputs: Sequence[Any]) -> None:
        """What is not finite between layers may be left out again, as a mask does; an output may be -inf at most."""
        if self._broken and any(_broken(item) for item in outputs if isinstance(item, torch.Tensor)):
            node, what = self._broken
            raise QuantizationError(
                f"layer {layer_of(node)!r} ({op_name(node)}) produced {what} during calibration",
                "the float model itself yields it on calibration samples, and an output of the model is not finite",
                "Check the checkpoint and the preprocessing in data.py.",
            )
        self._broken = None


def _broken(tensor: torch.Tensor) -> str | None:
    """NaN or +inf, where a tensor holds one."""
    return "NaN" if bool(torch.isnan(tensor).any()) else "+inf" if bool((tensor == torch.inf).any()) else None


def recorded(node: Node) -> bool:
    """Does a tensor have statistics of its own? Constants are measured when used; a reshape holds its input's values."""
    return node.op in ("placeholder", "call_function") and is_float(node) and op_name(node) not in SAME_VALUES
