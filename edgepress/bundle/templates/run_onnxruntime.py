"""Run this model with ONNX Runtime.

    python run.py                                       replay the golden samples: 0 match, 1 differ, 2 cannot run here
    python run.py --inputs FILE.npz [--save OUT.npz]    run your own inputs

Needs: pip install onnxruntime numpy
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
Arrays = dict[str, Any]  # of numpy arrays by name


class Unusable(Exception):
    """What --inputs names is not what the model takes."""


def load(artifact: Path, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    """The model as a function of its inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))


def main() -> int:
    """Replay the golden samples, or run the arrays of --inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, help="your own inputs: an .npz with one array per input, batch first")
    parser.add_argument("--save", type=Path, help="write the outputs to this .npz")
    options = parser.parse_args()
    takes = ""
    try:
        golden = json.loads((HERE / "golden.json").read_text("utf-8"))
        samples = dict(np.load(HERE / golden["inputs"], allow_pickle=False))
        expected = dict(np.load(HERE / golden["outputs"], allow_pickle=False))
        if options.inputs:
            takes = f"; the model takes {described(samples)}"
            samples = read(options.inputs, samples)
        outputs = load(HERE / golden["artifact"], list(expected))(samples)
    except Unusable as error:
        return stop(f"{error}{takes}")
    except ImportError as error:
        return stop(f"{error}: pip install onnxruntime numpy")
    except Exception as error:  # a runtime's exceptions share no base class
        return stop(f"cannot run here: {type(error).__name__}: {' '.join(str(error).split())[:300]}{takes}")
    if options.save:
        try:
            np.savez(options.save, **outputs)
        except OSError as error:
            return stop(f"cannot write {options.save}: {error.strerror or error}")
    return show(outputs) if options.inputs else compare(outputs, expected, golden["rtol"], golden["atol"])


def read(file: Path, like: Arrays) -> Arrays:
    """The arrays of an .npz, in the types of the golden samples."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of a file that is no .npz NumPy says that it may hold pickles
        why = getattr(error, "strerror", None) or "it is no .npz of numbers"
        raise Unusable(f"cannot read {file}: {why}") from error
    for name, golden in like.items():
        if name not in given:
            raise Unusable(f"{file} has no array {name!r}, only {', '.join(given) or 'none'}")
        if given[name].ndim != golden.ndim or not np.can_cast(given[name].dtype, golden.dtype, "same_kind"):
            raise Unusable(f"{name!r} in {file} is {given[name].dtype} {given[name].shape}")
    counts = sorted({len(given[name]) for name in like})
    if len(counts) > 1 or not counts[0]:
        raise Unusable(f"the arrays in {file} hold {' and '.join(map(str, counts))} samples, N has to be one number above 0")
    return {name: given[name].astype(golden.dtype) for name, golden in like.items()}


def described(samples: Arrays) -> str:
    """Name, type and shape of each input."""
    return ", ".join(f"{name}: {value.dtype} ({', '.join(['N', *map(str, value.shape[1:])])})" for name, value in samples.items())


def compare(outputs: Arrays, expected: Arrays, rtol: float, atol: float) -> int:
    """One line per output; 0 where every |output - golden| <= atol + rtol * |golden|, else 1."""
    matches = True
    for name, want in expected.items():
        got = outputs[name]
        same_shape = got.shape == want.shape
        error = np.abs(got.astype("f8") - want) if same_shape else np.array([np.nan])
        match = bool(same_shape and (error <= atol + rtol * np.abs(want)).all())  # NaN never matches
        print(f"{name}: max error {error.max(initial=0):.3g}, {'match' if match else 'DIFFERS'} (rtol {rtol:g}, atol {atol:g})")
        matches = matches and match
    return 0 if matches else 1


def show(outputs: Arrays) -> int:
    """Print what came out."""
    for name, value in outputs.items():
        print(f"{name}: {value.dtype} {value.shape}\n{value}")
    return 0


def stop(reason: str) -> int:
    """Say in one line why nothing ran."""
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
