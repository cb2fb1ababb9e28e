"""A real case, the int8 files that edgepress and a runtime's own quantizers make of it, and how they are kept for another machine."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.native import native_quantizers
from edgepress.exporters.native.base import NativeRequest
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import SCHEMES, Artifact, Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for

CALIBRATION, APART, BATCH = 512, 2050, 32
CASES = {"resnet20": ("cifar10", "input"), "resnet56": ("cifar10", "input"), "minilm": ("sst2", "input_ids", "attention_mask")}
#: What a target of the catalog must be told.
OPTIONS: Mapping[str, Mapping[str, object]] = {"tensorrt": {"compute_capability": ["8.6", "8.9"]}, "coreml": {"minimum_os": "iOS18"}}
#: Beside the files of a runtime: what each of them is.
INDEX = "files.json"


@dataclass(frozen=True)
class File:
    """What a quantizer made, or why it made none; seconds of wall time."""

    tool: str
    kind: str
    folder: Path
    made: Artifact | str
    seconds: float


@dataclass(frozen=True)
class Files:
    """All files of a runtime, the float original apart."""

    original: tuple[Artifact, Path]
    candidates: Iterable[File]


@dataclass(frozen=True)
class Case:
    """A model with its data; arrays by input name, dimension 0 is the sample."""

    program: Path
    statistics: Path
    signature: Signature
    calibration: Mapping[str, np.ndarray]
    apart: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    labels: np.ndarray
    seconds: float

    def target(self, runtime: str, precision: str) -> Target:
        return Target(runtime, runtime, "x86-64 CPU", precision, OPTIONS.get(runtime, {}))

    def request(self, runtime: str, scheme: Scheme) -> ExportRequest:
        samples = tuple(value[:4] for value in self.calibration.values())
        statistics = self.statistics if scheme.kind.startswith("static") else None
        return ExportRequest(self.program, self.signature, statistics, self.target(runtime, scheme.precision), scheme, samples)


def _module(folder: Path, name: str) -> object:
    spec = importlib.util.spec_from_file_location(f"case_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(root: Path, name: str, scratch: Path) -> Case:
    """Model, data and calibration of a case; `seconds` is what calibration took."""
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    folder, inputs = root / CASES[name][0], CASES[name][1:]
    model = getattr(_module(folder, "model"), name)()
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    data = _module(folder, "data")

    def arrays(dataset: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
        pieces = [(x if isinstance(x, (list, tuple)) else [x], y) for x, y in DataLoader(dataset, batch_size=250)]  # type: ignore[arg-type]
        columns = {key: np.concatenate([x[place].numpy() for x, _ in pieces]) for place, key in enumerate(inputs)}
        return columns, np.concatenate([y.numpy() for _, y in pieces])

    train = data.train()  # type: ignore[attr-defined]
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    calibration, _ = arrays(torch.utils.data.Subset(train, order[:CALIBRATION]))
    apart, _ = arrays(torch.utils.data.Subset(train, order[CALIBRATION : CALIBRATION + APART]))
    validation, labels = arrays(data.validation())  # type: ignore[attr-defined]
    example = tuple(torch.from_numpy(value[:2]) for value in calibration.values())
    program = torch.export.export(model.eval(), example, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in example))
    torch.export.save(program, scratch / "model.pt2")
    batches = [tuple(value[i : i + BATCH] for value in calibration.values()) for i in range(0, CALIBRATION, BATCH)]
    began = time.perf_counter()
    calibrate(program, batches).save(scratch / "statistics")
    seconds = time.perf_counter() - began
    specs = tuple(TensorSpec(key, str(value.dtype), (None, *value.shape[1:])) for key, value in calibration.items())
    classes = model(*example).shape[1]
    signature = Signature(specs, (TensorSpec("logits", "float32", (None, classes)),))
    return Case(scratch / "model.pt2", scratch / "statistics", signature, calibration, apart, validation, labels, seconds)


def make(runtime: str, case: Case, base: Path, kinds: Collection[str] = SCHEMES) -> Files:
    """The files of a runtime, of some kinds of schemes; candidates are made as they are asked for."""
    return Files(_float_file(runtime, case, base, "fp32"), _candidates(runtime, case, base, kinds))


def _candidates(runtime: str, case: Case, base: Path, kinds: Collection[str]) -> Iterator[File]:
    for kind in [kind for kind in rules_for(runtime).ladder if kind in kinds]:
        folder, began = base / f"edgepress-{kind}", time.perf_counter()
        try:
            made: Artifact | str = EXPORTERS.get(runtime)().export(case.request(runtime, Scheme("int8", kind)), folder)
        except EdgepressError as error:
            made = str(error)
        yield File("edgepress", kind, folder, made, time.perf_counter() - began)
    for name, quantizer in native_quantizers(runtime).items():
        source, where = _float_file(runtime, case, base, quantizer.base_precision)
        for kind in [kind for kind in quantizer.kinds if kind in kinds]:
            folder, scheme, began = base / f"{name}-{kind}", Scheme("int8", kind, tool=name), time.perf_counter()
            try:
                made = quantizer.quantize(NativeRequest(source, where, case.target(runtime, "int8"), scheme, case.calibration), folder)
            except EdgepressError as error:
                made = str(error)
            yield File(name, kind, folder, made, time.perf_counter() - began)


def keep(files: Files, base: Path) -> None:
    """Write beside a runtime's files what each of them is."""
    original, where = files.original
    rows = [
        asdict(file) | {"folder": file.folder.name, "made": file.made if isinstance(file.made, str) else file.made.to_json()}
        for file in files.candidates
    ]
    content = {"original": [original.to_json(), where.name], "candidates": rows}
    (base / INDEX).write_text(json.dumps(content))


def kept(base: Path) -> Files:
    """What `keep` wrote about."""
    content = json.loads((base / INDEX).read_text())
    rows = content["candidates"]
    made = [row["made"] if isinstance(row["made"], str) else Artifact.from_json(row["made"]) for row in rows]
    found = [File(**row | {"folder": base / row["folder"], "made": each}) for row, each in zip(rows, made, strict=True)]
    return Files((Artifact.from_json(content["original"][0]), base / content["original"][1]), found)


def _float_file(runtime: str, case: Case, base: Path, precision: str) -> tuple[Artifact, Path]:
    folder = base / precision
    return EXPORTERS.get(runtime)().export(case.request(runtime, Scheme(precision, "float")), folder), folder
