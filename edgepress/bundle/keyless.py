"""Keyless signatures: an identity of the CI or of a person in place of a key, through the program of the model-signing package.

Signing asks sigstore over the network and is done only where `--keyless` says so. Verifying is offline: sigstore's trust root is a
file. The package lives in an environment of its own, because it needs a newer pydantic than LiteRT's converter allows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgepress.bundle.sign import NAME
from edgepress.targets.errors import EdgepressError, IntegrityError, RuntimeUnavailable

#: Environment variable with the path of `model_signing`, where it is not on PATH.
PROGRAM = "EDGEPRESS_MODEL_SIGNING"
_INSTALL = f"Run: python -m venv ENV && ENV/bin/pip install model-signing pyopenssl && export {PROGRAM}=ENV/bin/model_signing"
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Signer:
    """Who must have signed.

    Attributes:
        identity: e.g. an e-mail address, or the URL of a workflow.
        issuer: OpenID Connect provider that vouched for it.
        trust_config: sigstore's trust root as a file (`ClientTrustConfig` JSON).
    """

    identity: str
    issuer: str
    trust_config: Path


def sign_keyless(bundle: Path, trust_config: Path | None = None) -> Path:
    """Write model.sig with the identity of this CI job, or of the person who logs in. Uses the network.

    Args:
        bundle: its folder.
        trust_config: a sigstore other than the public one (`ClientTrustConfig` JSON).

    Raises:
        RuntimeUnavailable: model-signing is not installed.
        EdgepressError: it did not sign; its last words are in the message.
    """
    path = bundle / NAME
    with tempfile.TemporaryDirectory(prefix="edgepress-") as scratch:
        made = Path(scratch) / NAME
        place = ["--signature", str(made), "--ignore-paths", str(path)]
        where = [] if trust_config is None else ["--trust_config", str(trust_config)]
        done = _call(["sign", "sigstore", str(bundle), "--use_ambient_credentials", *place, *where])
        if done.returncode or not made.is_file():
            raise EdgepressError("model_signing did not sign", _last_words(done), "Sign where the CI gives an identity, or use --key.")
        path.write_bytes(made.read_bytes())
    return path


def check_keyless(bundle: Path, signer: Signer) -> None:
    """Check that `signer` signed the files of a bundle. Uses no network.

    Raises:
        RuntimeUnavailable: model-signing is not installed.
        EdgepressError: the trust root cannot be read.
        IntegrityError: it was not this signer, or the files differ.
    """
    if not signer.trust_config.is_file():
        raise EdgepressError(f"trust root {str(signer.trust_config)!r} is not a file", "", "Save sigstore's ClientTrustConfig there.")
    place = ["--signature", str(bundle / NAME), "--trust_config", str(signer.trust_config)]
    who = ["--identity", signer.identity, "--identity_provider", signer.issuer]
    done = _call(["verify", "sigstore", str(bundle), *place, *who])
    if done.returncode:
        raise IntegrityError(f"not signed by {signer.identity!r} of {signer.issuer}", _last_words(done))


def _call(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = os.environ.get(PROGRAM) or shutil.which("model_signing")
    if program is None:
        raise RuntimeUnavailable("keyless signatures need the program model_signing", "it is not on PATH", _INSTALL)
    try:
        return subprocess.run([program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S)
    except OSError as error:
        raise RuntimeUnavailable(f"{program!r} does not start", error.strerror or str(error), _INSTALL) from error
    except subprocess.TimeoutExpired as error:
        raise EdgepressError(f"model_signing took longer than {_TIMEOUT_S} s", "", "Check the network, or use --key.") from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
