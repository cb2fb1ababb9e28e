"""Weight-only int4 on a decoder with grouped queries and SwiGLU: what each method loses, and what each runtime makes of it.

    python benchmarks/quantization/int4_decoder.py --runtimes onnxruntime openvino litert coreml

The decoder has 54 M parameters, random but structured: embeddings of rank 64 and norms whose channels differ by orders of magnitude,
as those of trained decoders do. Errors are squared errors of the logits as a share of their square, on tokens apart from calibration;
times are processor time of one run at batch 1, interleaved with the float model's. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.quantize import Int4Options, quantize_int4
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import INT4_METHODS, Int4Rules, rules_for
from edgepress.validators.runtimes import RUNTIMES

VOCABULARY, LENGTH, WIDTH, HEADS, HIDDEN, BLOCKS = 16000, 16, 512, 8, 1536, 12
PAIRS = 15
FLOAT, INT4 = Scheme("fp32", "float"), Scheme("int4-weights", "weights")
SIGNATURE = Signature((TensorSpec("ids", "int64", (None, LENGTH)),), (TensorSpec("logits", "float32", (None, VOCABULARY)),))


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.exp(torch.randn(WIDTH)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """Two query heads share a key and a value head; the feed-forward layer is gated by SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(), RmsNorm()
        self.q, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Token ids (batch, 16) in, logits of the last token (batch, 16000) out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.weight.data = torch.randn(VOCABULARY, 64) @ torch.randn(64, WIDTH) / 8
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = RmsNorm(), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


def tokens(count: int, seed: int) -> Tensor:
    """Token ids; the same for the same seed."""
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error as a share of the square."""
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


def compare_methods(
    program: torch.export.ExportedProgram, rules: Int4Rules, methods: Sequence[str], group: int, expected: np.ndarray, folder: Path
) -> None:
    """Print a line per method; leaves `<method>-<symmetric>.pt2` in `folder`."""
    for method in methods:
        started = time.monotonic()
        result = quantize_int4(program, Int4Options(rules, method, group), lambda: ((tokens(16, seed),) for seed in range(1, 9)))
        seconds = time.monotonic() - started
        with torch.no_grad():
            got = result.program.module()(tokens(32, 99)).numpy()
        torch.export.save(result.program, folder / f"{method}-{rules.symmetric}.pt2")
        print(
            f"| {method} | {'symmetric' if rules.symmetric else 'asymmetric'} | {error(got, expected):.4f} | {seconds:.0f} s |", flush=True
        )


def compare_runtime(runtime: str, folder: Path, expected: np.ndarray) -> None:
    """Print what one runtime makes of the float program and of the one rounded by GPTQ."""
    rules, ids = rules_for(runtime).int4, tokens(32, 99).numpy()
    assert rules is not None
    runs: dict[str, Callable[[], object]] = {}
    facts: dict[str, tuple[float, float]] = {}
    for scheme, program in ((FLOAT, "float.pt2"), (INT4, f"gptq-{rules.symmetric}.pt2")):
        target, place = Target(runtime, runtime, "CPU", scheme.precision), folder / runtime / scheme.precision
        request = ExportRequest(folder / program, SIGNATURE, None, target, scheme, (ids[:4],))
        artifact = EXPORTERS.get(runtime)().export(request, place)
        session = RUNTIMES.get(runtime)().open(artifact, place)
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        facts[scheme.precision] = (size / 1e6, error(session.run({"ids": ids})["logits"], expected))
        runs[scheme.precision] = session.bind({"ids": ids[:1].astype(artifact.signature.inputs[0].dtype)})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(PAIRS if RUNTIMES.get(runtime)().timing_unavailable() is None else 0):
        for name, call in runs.items():
            started = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - started))
    cells = []
    for name, (size, lost) in facts.items():
        cells += [f"{size:.1f} MB", f"{lost:.2g}", f"{statistics.median(times[name]):.1f} ms" if times[name] else "not measured here"]
    print(f"| {runtime} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Weight-only int4 on a decoder.")
    parser.add_argument("--runtimes", nargs="*", default=["onnxruntime", "openvino", "litert", "coreml"])
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--methods", nargs="*", choices=INT4_METHODS, default=INT4_METHODS, help="the second table takes gptq's files")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Decoder().eval(), (tokens(2, 0),), dynamic_shapes=({0: batch},))
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        folder, expected = Path(scratch), program.module()(tokens(32, 99)).numpy()
        torch.export.save(program, folder / "float.pt2")
        print("| method | grid | output error | time |\n|---|---|---|---|")
        for rules in dict.fromkeys(rules_for(runtime).int4 for runtime in arguments.runtimes):
            if rules is not None:
                compare_methods(program, rules, arguments.methods, arguments.group, expected, folder)
        print("\n| runtime | fp32 | error | time | int4 (gptq) | error | time |\n|---|---|---|---|---|---|---|")
        for runtime in arguments.runtimes:
            compare_runtime(runtime, folder, expected)


if __name__ == "__main__":
    main()
