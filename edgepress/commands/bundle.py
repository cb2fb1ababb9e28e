"""`edgepress verify`, `sign` and `bench`: what is done with bundles."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgepress.isolate import Call, call
from edgepress.targets.errors import EdgepressError, IntegrityError

if TYPE_CHECKING:
    from edgepress.bundle.verify import Asked


def verify_bundle(path: Path, asked: Asked, as_json: bool) -> int:
    """Re-hash a bundle, check its signature, replay its golden samples, compare live inputs.

    Returns:
        0 when all is as it was, 1 when something differs, 2 when it cannot be told, 3 when drift is undecided.
    """
    from edgepress.bundle.verify import verify
    from edgepress.report.console import print_verification

    found = verify(path, asked=asked)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_verification(found.to_json())
    return found.exit_code


def asked_of(key: Path | None, identity: str | None, issuer: str | None, trust_config: Path | None, live: Path | None) -> Asked:
    """What the options of `verify` ask for.

    Raises:
        EdgepressError: they do not go together.
    """
    from edgepress.bundle.keyless import Signer
    from edgepress.bundle.verify import Asked

    given = [value for value in (identity, issuer, trust_config) if value is not None]
    if not given:
        return Asked(key=key, inputs=live)
    if key is not None or identity is None or issuer is None or trust_config is None:
        remedy = "Give --key, or --identity, --issuer and --trust-config together."
        raise EdgepressError(
            "a signature is checked by a key or by an identity", "an identity needs its issuer and sigstore's trust root", remedy
        )
    return Asked(signer=Signer(identity, issuer, trust_config), inputs=live)


def sign_bundle(path: Path, key: Path | None, keyless: bool, trust_config: Path | None = None) -> None:
    """Sign an intact bundle.

    Raises:
        IntegrityError: the bundle is not as it was made; nothing is signed then.
        EdgepressError: neither or both ways of signing were asked for, or the key or the trust root cannot be used.
    """
    from edgepress.bundle import sign
    from edgepress.bundle.integrity import find_bundle, inspect
    from edgepress.bundle.keyless import sign_keyless

    if (key is None) is not keyless:
        raise EdgepressError("a bundle is signed with a key or with an identity", "", "Give --key FILE, or --keyless (uses the network).")
    if trust_config is not None and not (keyless and trust_config.is_file()):
        why = "its file is not there" if keyless else "a key needs no trust root"
        raise EdgepressError(
            f"--trust-config {str(trust_config)!r} cannot be used", why, "It goes with --keyless and names a ClientTrustConfig."
        )
    bundle = find_bundle(path)
    if damage := [item for item in inspect(bundle) if item.path != sign.NAME and not item.what.endswith(sign.NAME)]:
        raise IntegrityError(f"{str(bundle)!r} is not signed", f"{damage[0].path}: {damage[0].what}", "Make the bundle again.")
    typer.echo(sign.sign(bundle, key) if key is not None else sign_keyless(bundle, trust_config))


def time_pair(artifact: Path, against: Path, threads: int, as_json: bool) -> None:
    """Time two shipped artifacts of one runtime against each other."""
    first, second = _entry(artifact), _entry(against)
    if first["runtime"] != second["runtime"]:
        raise EdgepressError(
            f"{str(artifact)!r} is for {first['runtime']}, {str(against)!r} for {second['runtime']}",
            "a ratio is taken in one runtime",
            "Name two artifacts of the same target.",
        )
    params = {"candidate": first, "reference": second, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        value = call(Call("edgepress.steps.measure:pair", params, Path(folder), "bench", threads=threads)).value
    if as_json:
        typer.echo(json.dumps(value, indent=2))
        return
    low, high = value["interval"]
    typer.echo(f"{value['ratio']:.3f} ({low:.3f} to {high:.3f}) of the time of {against}, {value['pairs']} interleaved pairs")
    typer.echo(f"p50 {value['candidate_p50_ms']:.3f} ms against {value['reference_p50_ms']:.3f} ms in {value['executed_by']}, batch 1")


def _entry(path: Path) -> dict[str, Any]:
    """What a bundle lists at a target's folder, or at the artifact in it: the artifact as JSON, its runtime, and where it is.

    Args:
        path: the folder may go by its target's name, where that is another.

    Raises:
        EdgepressError: it is neither, or is not in a bundle.
    """
    whole = path.absolute()
    bundle = next((parent for parent in whole.parents if (parent / "bundle.json").is_file()), None)
    if bundle is None:
        raise EdgepressError(
            f"{str(path)!r} is neither a target's folder in a bundle nor its artifact there",
            "no folder above it has a bundle.json",
            "Name e.g. runs/latest/bundle/tflite.",
        )
    name, *inside = whole.relative_to(bundle).parts
    entries = json.loads((bundle / "bundle.json").read_text())["artifacts"]
    for entry in entries:
        artifact = list(Path(entry["path"]).parts)
        if name in (entry["folder"], entry["target"]) and inside[: len(artifact)] in ([], artifact):
            return {"runtime": entry["runtime"], "artifact": entry["artifact"], "folder": str((bundle / entry["folder"]).resolve())}
    known = ", ".join(f"{entry['folder']}/{entry['path']}" for entry in entries)
    raise EdgepressError(f"{str(path)!r} is no artifact of its bundle", "", f"It has {known}.")
