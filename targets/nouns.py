"""The nouns every part shares: frozen dataclasses, no behaviour beyond validation and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepress.targets.errors import ConfigError

#: Precisions a recipe may ask for.
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int8-weights", "int4-weights", "mixed")

#: How a precision is carried out, from most to least integer arithmetic (see `QuantRules.ladder`).
SCHEMES = ("float", "static", "static-matmul", "dynamic", "weights", "fp8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `shape[i]` is None where the dimension is dynamic (the batch)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """What goes in and what comes out of a model, in positional order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""

        def specs(key: str) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in data[key])

        return Signature(specs("inputs"), specs("outputs"))

    @property
    def only_batch(self) -> int | None:
        """How many samples a model takes at a time that was traced with a fixed batch; None where any number will do."""
        return self.inputs[0].shape[0]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Scheme:
    """One way of carrying out a precision.

    Attributes:
        precision: what the recipe asked for (`PRECISIONS`).
        kind: how it is done (`SCHEMES`): `float` (fp32, fp16, bf16), `static` (integer activations with calibrated
            ranges wherever the runtime has an integer kernel), `static-matmul` (the same on convolutions, linear
            layers and matrix products alone), `dynamic` (activation ranges taken at run time), `weights` (integer
            weights, float arithmetic), `fp8` (what linear layers and matrix products read in floats of 8 bits with calibrated scales).
        float_layers: layers that a `static` or `static-matmul` scheme keeps in float, by their node in the canonical graph, sorted.
        tool: the runtime's own quantizer that carries it out (`exporters.native`), empty for edgepress's rendering.
        weight_bits: of the integers that weights are rounded to; 0 leaves it to the rules of the runtime.
        int4_layers: layers and embedding tables whose weights a `static` or `static-matmul` scheme stores in 4 bits, named and sorted
            likewise. Their arithmetic is that of 8 bits: weights are unpacked when the file is loaded, rows of tables when they are found.
        int2_layers: the same in 2 bits.
    """

    precision: str
    kind: str
    float_layers: tuple[str, ...] = ()
    tool: str = ""
    weight_bits: int = 0
    int4_layers: tuple[str, ...] = ()
    int2_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("float_layers", "int4_layers", "int2_layers"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", remedy=f"Use one of {', '.join(PRECISIONS)}.")
        if self.kind not in SCHEMES:
            raise ConfigError(f"unknown scheme {self.kind!r}", remedy=f"Use one of {', '.join(SCHEMES)}.")
        named: dict[str, str] = {}
        ways = (("keep", "float", self.float_layers), ("store", "4 bits", self.int4_layers), ("store", "2 bits", self.int2_layers))
        for verb, what, layers in ways:
            if layers and self.kind not in ("static", "static-matmul"):
                raise ConfigError(f"scheme {self.kind!r} cannot {verb} single layers in {what}", remedy="Use static or static-matmul.")
            for layer in layers:
                if layer in named:
                    raise ConfigError(f"layer {layer!r} cannot be in {named[layer]} and in {what}", remedy="Name it once.")
                named[layer] = what

    @property
    def calibrated(self) -> bool:
        """Does it need calibration statistics?"""
        return self.kind in ("static", "static-matmul", "fp8")

    @property
    def narrow_layers(self) -> dict[str, int]:
        """Layers with fewer than 8 bits: node -> 4 or 2."""
        return dict.fromkeys(self.int4_layers, 4) | dict.fromkeys(self.int2_layers, 2)

    @property
    def label(self) -> str:
        """A short name for tables and file names, e.g. `int8 static`, `mixed static, 2 float, 9 int4` or `int8 static (nncf)`."""
        kept = f", {len(self.float_layers)} float" if self.float_layers else ""
        kept += f", {len(self.int4_layers)} int4" if self.int4_layers else ""
        kept += f", {len(self.int2_layers)} int2" if self.int2_layers else ""
        tool = f" ({self.tool})" if self.tool else ""
        return self.precision if self.kind in ("float", self.precision) else f"{self.precision} {self.kind}{kept}{tool}"


@dataclass(frozen=True)
class Target:
    """A runtime on a device at a precision, built from a catalog entry and the user's overrides.

    Attributes:
        name: unique in a run; the bundle folder is `name` up to the first colon.
        runtime: key of the exporter, the runtime and the quantization rules.
        device: what the artifact is for, e.g. `x86-64 CPU`.
        precision: one of `PRECISIONS`.
        options: settings only this runtime's exporter reads (e.g. `minimum_os`, `compute_capability`, `io`).
        threads, batch: used for latency and peak memory.
    """

    name: str
    runtime: str
    device: str
    precision: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    batch: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries."""
        return {**dataclasses.asdict(self), "options": dict(self.options)}


@dataclass(frozen=True)
class Support:
    """Is something usable on this machine? If not, what is missing and the command that installs it."""

    usable: bool
    version: str | None = None
    missing: str | None = None
    install: str | None = None


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a runtime loads.

    Attributes:
        path: file or folder, absolute or relative to the folder the export wrote into.
        target: the target's name.
        scheme: how its precision was carried out.
        signature: inputs and outputs as the runtime names them; floats stay float at the boundary unless the target
            asked for integer I/O.
        facts: what a device team asks: `opset`, `minimum_os`, `runtime_minimum`, `compute_capability`, …
        float_ops: ops left in float, each with the reason: `({"op": "aten.layer_norm", "count": 12, "reason": …}, …)`.
        extra: further files of the same export (an .onnx beside an engine), relative to the export folder.
    """

    path: str
    target: str
    scheme: Scheme
    signature: Signature
    facts: Mapping[str, Any] = field(default_factory=dict)
    float_ops: tuple[Mapping[str, Any], ...] = ()
    extra: tuple[str, ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Artifact:
        """The inverse of `to_json`."""
        return Artifact(
            path=data["path"],
            target=data["target"],
            scheme=Scheme(**data["scheme"]),
            signature=Signature.from_json(data["signature"]),
            facts=data["facts"],
            float_ops=tuple(data["float_ops"]),
            extra=tuple(data["extra"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class KernelReport:
    """Proof of what ran in which precision, read from the runtime itself.

    Attributes:
        int8, fp16, fp32, unknown: number of compute ops (convolutions, matrix products, elementwise sums, pooling,
            normalisation, activations; not copies, casts, quantize/dequantize or reshapes) that execute in that type
            (`fp16` counts bf16 too; `int8` counts any 8-bit or narrower integer arithmetic).
        int8_macs_share: share (0..1) of multiply-accumulates of convolutions and matrix products that runs in integers;
            None where the runtime does not reveal the shapes.
        source: where this was read, e.g. `onnxruntime optimized graph`.
        ops: per-op lines for `edgepress explain`: `({"op": "QLinearConv", "name": "…", "type": "int8"}, …)`.
        fp8: number of compute ops in floats of 8 bits.
    """

    int8: int
    fp16: int
    fp32: int
    unknown: int
    int8_macs_share: float | None
    source: str
    ops: tuple[Mapping[str, Any], ...] = ()
    fp8: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Evidence:
    """One measured fact.

    Attributes:
        name: e.g. `accuracy_drop`, `latency_ratio`, `size`, `latency_p95`, `peak_memory`.
        value: point estimate in `unit`; None when it could not be taken.
        unit: `pp`, `ratio`, `bytes`, `ms`, or the metric's own unit.
        interval: two-sided interval of `value` at the stated confidence, or None for exact facts.
        samples: how many samples or pairs it rests on.
        how: one line: method, machine, `executed_by`.
        unmeasurable: why this machine cannot take it (None when it can). Undecided, not an error.
        error: why taking it failed (None when it did not). An error, never a pass.
        needed: how many samples or pairs would decide, where that can be said.
        incomparable: why it cannot be compared with the accepted release (None when it can). Undecided, whatever the recipe accepts.
        remedy: the next step where the gate's own does not fit.
    """

    name: str
    value: float | None
    unit: str
    interval: tuple[float, float] | None = None
    samples: int = 0
    how: str = ""
    unmeasurable: str | None = None
    error: str | None = None
    needed: int | None = None
    incomparable: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A gate applied to evidence: `verdict` is pass, fail, undecided, accepted or error."""

    name: str
    limit: str
    observed: str
    interval: tuple[float, float] | None
    verdict: str
    next_step: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return dataclasses.asdict(self)
