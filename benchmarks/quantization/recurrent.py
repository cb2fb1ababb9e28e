"""What integers gain in recurrent layers: int8 files of taggers with random weights beside their float ones, in interleaved pairs.

    python benchmarks/quantization/recurrent.py [--runtime litert]... [--pairs 100]

Batch 1, 1 thread. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgepress.compress.portable import portable
from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes import RUNTIMES

#: Kind, features, state, layers, both ways, steps.
NETS = (
    (nn.LSTM, 40, 64, 1, False, 16),
    (nn.LSTM, 64, 128, 1, False, 32),
    (nn.LSTM, 128, 256, 2, False, 64),
    (nn.LSTM, 128, 256, 2, True, 64),
    (nn.LSTM, 512, 512, 1, False, 64),
    (nn.GRU, 64, 128, 1, False, 32),
    (nn.GRU, 512, 512, 1, False, 64),
)
CLASSES, SAMPLES = 10, 64
RUNTIMES_TIMED = ("onnxruntime", "openvino", "litert")


class Tagger(nn.Module):
    """A recurrent layer and a class for every step; (n, steps, features) -> (n, steps, 10)."""

    def __init__(self, kind: type[nn.RNNBase], features: int, state: int, layers: int, both_ways: bool) -> None:
        super().__init__()
        self.steps = kind(features, state, layers, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(state * (1 + both_ways), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0])


def size_of(path: Path) -> int:
    """Bytes of a file or of all in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def row(net: tuple[type[nn.RNNBase], int, int, int, bool, int], name: str, pairs: int, folder: Path) -> str:
    """One line of the table."""
    kind, features, state, layers, both_ways, steps = net
    torch.manual_seed(0)
    model, x = Tagger(kind, features, state, layers, both_ways).eval(), torch.randn(SAMPLES, steps, features)
    program = portable(torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(x,)]).save(folder / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, steps, features)),), (TensorSpec("y", "float32", (None, steps, CLASSES)),))

    def made(scheme: Scheme) -> Artifact:
        target, statistics = Target("cpu", name, "CPU", scheme.precision), folder / "statistics" if scheme.calibrated else None
        wanted = ExportRequest(folder / "model.pt2", signature, statistics, target, scheme, (x[:4].numpy(),))
        return EXPORTERS.get(name)().export(wanted, folder / scheme.precision)

    artifacts = [made(Scheme("fp32", "float")), made(Scheme("int8", "static"))]
    sizes = [size_of(folder / artifact.scheme.precision / artifact.path) for artifact in artifacts]
    runtime = RUNTIMES.get(name)()
    with (
        runtime.open(artifacts[0], folder / "fp32") as floats,
        runtime.open(artifacts[1], folder / "int8") as integers,
        torch.no_grad(),
    ):
        expected, found = model(x).numpy(), integers.run({"x": x.numpy()})["y"]
        noise = np.square(expected).sum() / np.square(found - expected).sum()
        once = [session.bind({"x": x[:1].numpy()}) for session in (integers, floats)]
        ratios = []
        for _ in range(pairs):
            seconds = []
            for run in once:
                started = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - started)
            ratios.append(seconds[0] / seconds[1])
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    shape = f"{kind.__name__} {features} to {state}, {layers} layer{'s' * (layers > 1)}{', both ways' * both_ways}, {steps} steps"
    return f"| {shape} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {sizes[1] / sizes[0]:.2f} | {10 * np.log10(noise):.0f} dB |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", choices=RUNTIMES_TIMED, help="default: all")
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| layers | runtime | x fp32 (quartiles) | size | SQNR |\n|---|---|---|---|---|")
    for net in NETS:
        for name in arguments.runtime or RUNTIMES_TIMED:
            with tempfile.TemporaryDirectory() as folder:
                print(row(net, name, arguments.pairs, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
