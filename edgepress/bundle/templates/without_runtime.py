"""This artifact's runtime brought no script of its own. What to do with the files here:

1. load `@ARTIFACT@` with the runtime `@RUNTIME@`;
2. feed it the arrays of golden_inputs.npz, by name;
3. compare with golden_outputs.npz within the rtol and atol of golden.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print what goes in and what comes out."""
    golden = json.loads((HERE / "golden.json").read_text("utf-8"))
    for kind in ("inputs", "outputs"):
        with np.load(HERE / golden[kind], allow_pickle=False) as arrays:
            for name in arrays.files:
                print(f"{kind[:-1]} {name}: {arrays[name].dtype} {arrays[name].shape}")
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
