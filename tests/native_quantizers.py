"""Native quantizers of the NumPy target, as test doubles: one that works, and three that do not.

`install` writes the metadata of a package that brings them; with it on PYTHONPATH every child process finds them by name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgepress.exporters.native.base import NativeQuantizer, NativeRequest, Written


class Copies(NativeQuantizer):
    """Ships the float file as it is: exact, and faster than rounding in NumPy."""

    runtime = "numpy"
    package = "numpy"
    extra = "numpy"
    kinds: tuple[str, ...] = ("static",)

    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        assert all(len(batch["image"]) <= 8 for batch in request.batches(8))
        shutil.copyfile(request.path, folder / "model.npz")
        return Written(("model.npz",))


class Raises(Copies):
    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        raise ZeroDivisionError("in pass 'fold_everything'\nwith a second line")


class Dies(Copies):
    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        (folder / "model.npz").write_bytes(b"half")
        os._exit(7)


class WritesGarbage(Copies):
    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        (folder / "model.npz").write_bytes(b"no archive")
        return Written(("model.npz",))


class Absent(Copies):
    package = "edgepress-no-such-quantizer"
    extra = "native"


QUANTIZERS = {"copier": Copies, "raiser": Raises, "dier": Dies, "garbler": WritesGarbage, "absentee": Absent}


def install(folder: Path) -> dict[str, str]:
    """Write the metadata of a package that registers every quantizer.

    Returns:
        Environment variables under which child processes find it.
    """
    info = folder / "edgepress_native_doubles-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgepress-native-doubles\nVersion: 1.0\n")
    lines = ["[edgepress.native_quantizers]", *(f"{name} = tests.native_quantizers:{cls.__name__}" for name, cls in QUANTIZERS.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    here = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(folder), str(here), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path.rstrip(os.pathsep)}
