"""model.sig: a signature over every file of a bundle, in the format of OpenSSF model signing 1.0.

A sigstore bundle v0.3 (JSON) holds a DSSE envelope, which holds an in-toto statement of predicate type
https://model_signing/signature/v1.0: path and sha256 of every file. `model_signing verify key` of the model-signing package reads it.
The format is written here, because that package pins pydantic to versions that LiteRT's converter excludes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress.bundle.digest import tree
from edgepress.targets.errors import EdgepressError, IntegrityError, RuntimeUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

NAME = "model.sig"
#: Environment variable with the password of an encrypted private key.
PASSWORD = "EDGEPRESS_KEY_PASSWORD"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_REMEDY = "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


def sign(bundle: Path, key: Path) -> Path:
    """Write model.sig; the same key and files give the same bytes (RFC 6979).

    Args:
        bundle: an intact bundle; an older signature is replaced.
        key: PEM file with an elliptic-curve private key (P-256, P-384 or P-521); its password, if any, in `EDGEPRESS_KEY_PASSWORD`.

    Returns:
        The file.

    Raises:
        RuntimeUnavailable: the package cryptography is not installed.
        EdgepressError: the key cannot be used.
    """
    private = _load(key, private=True)
    from cryptography.hazmat.primitives.asymmetric import ec

    payload = _payload(bundle)
    signature = private.sign(_encoded(payload), ec.ECDSA(_hash(private.curve), deterministic_signing=True))
    path = bundle / NAME
    partial = path.with_name(f".{NAME}.{os.getpid()}.partial")
    try:
        partial.write_text(_render(payload, signature, _hint(private.public_key())), "utf-8", newline="\n")
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def check(text: str, key: Path) -> None:
    """Check the signature of a model.sig.

    Raises:
        RuntimeUnavailable: the package cryptography is not installed.
        EdgepressError: the public key cannot be used.
        IntegrityError: the signature is not of this key, or not of what it is said to be of.
    """
    public = _load(key, private=False)
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    payload, signature, hint = _parse(text)
    if hint != _hint(public):
        raise IntegrityError(
            f"signed with another key than {str(key)!r}", f"the signature names key {hint[:16]}…, this is {_hint(public)[:16]}…"
        )
    try:
        public.verify(signature, _encoded(payload), ec.ECDSA(_hash(public.curve)))
    except InvalidSignature:
        raise IntegrityError(f"not the signature of {str(key)!r} over what it lists") from None


def is_keyless(text: str) -> bool:
    """Whether the signature carries a certificate of an identity in place of a key's name."""
    try:
        return "certificate" in json.loads(text)["verificationMaterial"]
    except (ValueError, KeyError, TypeError):
        return False


def signed_files(text: str) -> dict[str, str]:
    """Relative path -> sha256 of everything a model.sig speaks of; who signed it is not looked at.

    Raises:
        IntegrityError: the text is no such signature.
    """
    try:
        payload = base64.b64decode(json.loads(text)["dsseEnvelope"]["payload"], validate=True) if is_keyless(text) else _parse(text)[0]
        statement = json.loads(payload)
        resources = statement["predicate"]["resources"]
        if statement["predicateType"] != _PREDICATE_TYPE or statement["predicate"]["serialization"]["method"] != "files":
            raise ValueError("its statement does not list files")
        if {resource["algorithm"] for resource in resources} != {"sha256"}:
            raise ValueError("it uses another hash than sha256")
        return {resource["name"]: resource["digest"] for resource in resources}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("not a model signature", str(error)) from error


def _payload(bundle: Path) -> bytes:
    files = {name: value for name, value in tree(bundle).items() if name != NAME}
    names = sorted(files, key=lambda name: name.split("/"))
    together = hashlib.sha256(b"".join(bytes.fromhex(files[name]) for name in names)).hexdigest()
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": bundle.resolve().name, "digest": {"sha256": together}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [NAME]},
            "resources": [{"name": name, "algorithm": "sha256", "digest": files[name]} for name in names],
        },
    }
    return json.dumps(statement, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _render(payload: bytes, signature: bytes, hint: str) -> str:
    body = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(body, separators=(",", ":"))


def _parse(text: str) -> tuple[bytes, bytes, str]:
    """Payload, signature and the key's name; whatever would be written differently is refused, so that no changed byte passes."""
    try:
        body = json.loads(text)
        envelope = body["dsseEnvelope"]
        payload, signature = (base64.b64decode(item, validate=True) for item in (envelope["payload"], envelope["signatures"][0]["sig"]))
        hint = str(body["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError("not a model signature", str(error)) from error
    if _render(payload, signature, hint) != text.rstrip("\n"):
        raise IntegrityError("not a model signature as it is written", "something in it was changed")
    return payload, signature, hint


def _encoded(payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE 1.0."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _hint(public: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _hash(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}[curve.name]


def _load(path: Path, private: bool) -> Any:
    """The key in a PEM file, on a curve of the format."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise RuntimeUnavailable("signatures need the package cryptography", str(error), "Run: pip install 'edgepress[signing]'") from error
    password = os.environ.get(PASSWORD)
    kind, wanted = ("private", ec.EllipticCurvePrivateKey) if private else ("public", ec.EllipticCurvePublicKey)
    try:
        raw = path.read_bytes()
        key = load_pem_private_key(raw, password.encode() if password else None) if private else load_pem_public_key(raw)
    except OSError as error:
        raise EdgepressError(f"key {str(path)!r} cannot be read", error.strerror or str(error), "Check the path.") from error
    except TypeError as error:  # a password without an encrypted key, or the other way round
        raise EdgepressError(f"key {str(path)!r} does not open", str(error), f"{'Unset' if password else 'Set'} {PASSWORD}.") from error
    except ValueError as error:
        why = f"or {PASSWORD} is not its password" if password else ""
        raise EdgepressError(f"{str(path)!r} is no {kind} key in PEM form", why, _REMEDY) from error
    if not isinstance(key, wanted) or key.curve.name not in _CURVES:
        raise EdgepressError(f"key {str(path)!r} is on none of the curves of model signing", "they are P-256, P-384 and P-521", _REMEDY)
    return key
