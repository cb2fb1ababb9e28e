"""The same artifacts in the folders that model servers and registries take, below `layouts/` of a bundle.

A layout is a module with `lacks(entry)`, why an artifact has no place in it (None where it has), and `write(request)`. Files of the
bundle are linked into it, so that they take no room twice; where the file system has no links they are copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from edgepress.bundle.layouts import oci, ovms, triton
from edgepress.bundle.layouts.request import FOLDER, Request

Json = Mapping[str, Any]
#: Name in `bundle: {layouts: […]}` -> the module that writes it.
LAYOUTS: Mapping[str, ModuleType] = {"triton": triton, "ovms": ovms, "oci": oci}
#: Layouts that serve some runtimes alone.
SERVED: Mapping[str, tuple[str, ...]] = {"triton": tuple(triton.BACKENDS), "ovms": ("openvino",)}

__all__ = ["FOLDER", "LAYOUTS", "SERVED", "Request", "describe", "write"]


def describe(names: Sequence[str], entries: Sequence[Json]) -> dict[str, Any]:
    """The `layouts` of bundle.json: per layout its folder, the targets in it, and why the others are not."""
    described = {}
    for name in names:
        reasons = {entry["target"]: LAYOUTS[name].lacks(entry) for entry in entries}
        left_out = {target: reason for target, reason in reasons.items() if reason is not None}
        taken = [target for target, reason in reasons.items() if reason is None]
        described[name] = {"folder": f"{FOLDER}/{name}", "targets": taken, "left_out": left_out}
    return described


def write(names: Sequence[str], request: Request) -> None:
    """Write layouts into `request.bundle`; one that no artifact has a place in is not written."""
    for name in names:
        entries = [entry for entry in request.entries if LAYOUTS[name].lacks(entry) is None]
        if entries:
            LAYOUTS[name].write(request.below(name, entries))
