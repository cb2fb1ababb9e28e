"""`edgepress verify`: is a bundle what was shipped, by whom, does it compute what it computed, and do live inputs look alike?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgepress.bundle import inputs, sign, sums
from edgepress.bundle.drift import Drift, compare_inputs
from edgepress.bundle.integrity import Damage, against_report, find_bundle, inspect, read_bundle
from edgepress.bundle.keyless import Signer, check_keyless
from edgepress.isolate import Call, Limits, call
from edgepress.targets.errors import EdgepressError, ExecutionError, IntegrityError

LIMITS = Limits(timeout_s=300.0, memory_bytes=8 << 30)
Replayer = Callable[[Mapping[str, Any], Path], dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What is checked beyond the bundle's own records.

    Attributes:
        key: public key that must have signed it (PEM).
        signer: identity that must have signed it, where there is no key.
        inputs: an .npz of live inputs.
    """

    key: Path | None = None
    signer: Signer | None = None
    inputs: Path | None = None


@dataclass(frozen=True)
class Replay:
    """The golden samples of one target.

    Attributes:
        outcome: `match`, `mismatch`, `failed` (the runtime refused or crashed), `not here` (its runtime is missing) or `damaged`.
        detail: the largest deviation and its limit, or why there is none.
    """

    target: str
    runtime: str
    outcome: str
    detail: str
    executed_by: str | None = None
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Verification:
    """What was found in a bundle with `files` files.

    Attributes:
        signature: `absent`, `not checked` (signed, and no key was given), `valid` or `invalid`.
        drift: live inputs against calibration's, where they were given.
    """

    bundle: str
    files: int
    damage: tuple[Damage, ...]
    replays: tuple[Replay, ...] = field(default=())
    signature: str = "absent"
    drift: Drift | None = None

    @property
    def exit_code(self) -> int:
        """0 all that was asked for holds; 1 a file, the signature, a replay or the inputs do not.

        2 nothing could be replayed and no inputs were asked about; 3 whether the inputs drifted is undecided.
        """
        outcomes = {replay.outcome for replay in self.replays}
        drift = self.drift.verdict if self.drift else None
        if self.damage or outcomes & {"mismatch", "failed", "damaged"} or drift == "drift":
            return 1
        if drift is None and outcomes == {"not here"}:
            return 2
        return 3 if drift == "undecided" else 0

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        drift = {"drift": asdict(self.drift) | {"verdict": self.drift.verdict}} if self.drift else {}
        return {**asdict(self), **drift, "exit_code": self.exit_code}


def verify(path: Path, replayer: Replayer | None = None, asked: Asked | None = None) -> Verification:
    """Re-hash every file, check the signature, replay what is intact, and compare live inputs.

    Args:
        path: a bundle, or the RUN_DIR that holds one.
        replayer: runs one artifact; each in a process of its own by default.
        asked: further checks.

    Raises:
        IntegrityError: there is no bundle here.
        EdgepressError: a key, a trust root or the inputs cannot be used.
    """
    asked = asked or Asked()
    bundle = find_bundle(path)
    damage = inspect(bundle)
    if bundle.parent == path and (path / "report.json").is_file():
        damage += against_report(path)
    signature, forged = _signature(bundle, asked)
    if signature == "invalid":  # then what it lists is nobody's word
        damage = [item for item in damage if item.what != f"disagrees with {sign.NAME}"]
    damage += [item for item in forged if item.path not in {known.path for known in damage}]
    files = sum(file.is_file() for file in bundle.rglob("*"))
    damaged = {item.path for item in damage}
    drift = compare_inputs(bundle, asked.inputs) if asked.inputs and inputs.NAME not in damaged else None
    if damaged & {"bundle.json", sums.NAME}:
        return Verification(str(path), files, tuple(damage), (), signature, drift)
    entries = read_bundle(bundle)["artifacts"]
    replays = [_replayed(bundle, entry, damaged, replayer or replay_isolated) for entry in entries]
    return Verification(str(path), files, tuple(damage), tuple(replays), signature, drift)


def _signature(bundle: Path, asked: Asked) -> tuple[str, list[Damage]]:
    """The state of model.sig, and what is wrong with it."""
    path = bundle / sign.NAME
    wanted = asked.key is not None or asked.signer is not None
    if not path.is_file():
        return "absent", [Damage(sign.NAME, "missing: nobody signed this bundle")] if wanted else []
    try:
        if asked.key is not None:
            sign.check(path.read_text("utf-8", "replace"), asked.key)
        elif asked.signer is not None:
            check_keyless(bundle, asked.signer)
    except IntegrityError as error:
        return "invalid", [Damage(sign.NAME, str(error))]
    return "valid" if wanted else "not checked", []


def _replayed(bundle: Path, entry: Mapping[str, Any], damaged: set[str], replayer: Replayer) -> Replay:
    target, runtime, folder = entry["target"], entry["runtime"], bundle / entry["folder"]
    if hit := sorted(name for name in damaged if name.startswith(f"{entry['folder']}/")):
        return Replay(target, runtime, "damaged", f"not run: {hit[0]} is not as it was shipped")
    try:
        value = replayer(entry, folder)
    except EdgepressError as error:
        return Replay(target, runtime, "failed", str(error))
    if not value["usable"]:
        install = f" Run: {value['install']}" if value["install"] else ""
        return Replay(target, runtime, "not here", f"{value['missing'] or 'its runtime is not installed'}.{install}")
    outcome = "match" if value["match"] else "mismatch"
    detail = value["problem"]
    if detail is None:
        detail = f"largest deviation {value['max_abs_error']:.3g}, allowed {value['allowed']:.3g}, on {value['samples']} samples"
    return Replay(target, runtime, outcome, detail, value["executed_by"], value["max_abs_error"])


def replay_isolated(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Replay one artifact in a process of its own.

    Raises:
        EdgepressError: the runtime refused it, crashed, hung, or ate its memory limit.
    """
    with tempfile.TemporaryDirectory(prefix="edgepress-") as scratch:
        params = {"entry": dict(entry), "folder": str(folder.absolute())}
        request = Call("edgepress.bundle.replay:replay", params, Path(scratch), label=f"replay {entry['target']}")
        value = call(request, LIMITS).value
    if not isinstance(value, dict):
        raise ExecutionError(f"replay of {entry['target']!r} returned {type(value).__name__}")
    return value
