"""Keys for tests of signatures."""

from __future__ import annotations

from pathlib import Path

import pytest


def keys(folder: Path, name: str = "key", curve: str = "SECP256R1", password: bytes | None = None) -> tuple[Path, Path]:
    """Write a private and a public key in PEM form; the test is skipped where cryptography is missing."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    from cryptography.hazmat.primitives import serialization as form

    key = ec.generate_private_key(getattr(ec, curve)())
    lock = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public
