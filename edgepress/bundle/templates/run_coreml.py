"""Run this model with Core ML.

    python run.py                                       replay the golden samples: 0 match, 1 differ, 2 cannot run here
    python run.py --inputs FILE.npz [--save OUT.npz]    run your own inputs

Needs: a Mac, and pip install coremltools numpy. Elsewhere it only checks that the package is whole.
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


class NotAMac(Exception):
    """The package loads, and nothing here can run it."""


def load(artifact: Path, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    """The model as a function of its inputs. The package takes a fixed batch: samples go in piece by piece."""
    import coremltools

    on_mac = sys.platform == "darwin"
    model = coremltools.models.MLModel(str(artifact), skip_model_load=not on_mac)
    shapes = {feature.name: tuple(feature.type.multiArrayType.shape) for feature in model.get_spec().description.input}
    if not on_mac:
        raise NotAMac(f"{artifact.name} is readable (inputs {shapes}), but Core ML needs a Mac to run it")
    batch = next(iter(shapes.values()))[0]

    def run(inputs: Arrays) -> Arrays:
        total = len(next(iter(inputs.values())))
        pieces = []
        for start in range(0, total, batch):
            piece = {name: filled(value[start : start + batch], batch) for name, value in inputs.items()}
            found = model.predict(piece)
            pieces.append({name: np.asarray(found[name])[: total - start] for name in outputs})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}

    return run


def filled(value: Any, batch: int) -> Any:
    """In Core ML's types, the last sample repeated where there are fewer than the package takes."""
    typed = value.astype("f4" if value.dtype.kind == "f" else "i4")
    return np.concatenate([typed, np.repeat(typed[-1:], batch - len(typed), axis=0)])


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
        return stop(f"{error}: pip install coremltools numpy")
    except NotAMac as error:
        return stop(str(error))
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
