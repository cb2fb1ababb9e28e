"""Signatures: who signed a bundle is checked offline, in a format other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepress.bundle import sign
from edgepress.bundle.integrity import inspect
from edgepress.bundle.keyless import PROGRAM, Signer
from edgepress.bundle.verify import Asked, verify
from edgepress.bundle.write import write_bundle
from edgepress.commands.bundle import asked_of, sign_bundle
from edgepress.targets.errors import EdgepressError, IntegrityError, RuntimeUnavailable
from tests.bundle_sample import report_of, shipments
from tests.signing_keys import keys
from tests.test_verify import matching


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shipped = shipments(tmp_path / "store")
    write_bundle(tmp_path, report_of(shipped), shipped)
    return tmp_path / "bundle"


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_signed_bundle_is_valid_for_its_key_and_for_no_other(bundle: Path, tmp_path: Path, curve: str) -> None:
    private, public = keys(tmp_path, curve=curve)
    _, stranger = keys(tmp_path, "stranger", curve=curve)
    sign_bundle(bundle, private, keyless=False)
    found = verify(bundle, matching, Asked(key=public))
    assert (found.exit_code, found.signature, found.damage) == (0, "valid", ())
    other = verify(bundle, matching, Asked(key=stranger))
    assert (other.exit_code, other.signature) == (1, "invalid")
    assert [item.path for item in other.damage] == [sign.NAME] and "another key" in other.damage[0].what
    assert verify(bundle, matching).signature == "not checked"


def test_the_same_key_and_files_give_the_same_signature(bundle: Path, tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    first = sign.sign(bundle, private).read_bytes()
    assert sign.sign(bundle, private).read_bytes() == first


def test_an_unsigned_bundle_is_not_taken_for_a_signed_one(bundle: Path, tmp_path: Path) -> None:
    found = verify(bundle, matching, Asked(key=keys(tmp_path)[1]))
    assert [(item.path, item.what) for item in found.damage] == [(sign.NAME, "missing: nobody signed this bundle")] and found.exit_code == 1


def test_a_claim_to_another_key_is_caught(bundle: Path, tmp_path: Path) -> None:
    """A stranger signs and writes the name of the right key into the file."""
    _, public = keys(tmp_path)
    stranger, strange_public = keys(tmp_path, "stranger")
    sign.sign(bundle, stranger)
    text = (bundle / sign.NAME).read_text()
    names = [sign._hint(sign._load(path, private=False)) for path in (strange_public, public)]
    (bundle / sign.NAME).write_text(text.replace(names[0], names[1]))
    with pytest.raises(IntegrityError, match="not the signature of"):
        sign.check((bundle / sign.NAME).read_text(), public)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"dsseEnvelope": 3}'])
def test_a_strange_signature_is_damage_and_no_crash(bundle: Path, tmp_path: Path, content: str) -> None:
    (bundle / sign.NAME).write_text(content)
    assert [item.path for item in inspect(bundle)] == [sign.NAME]
    assert [item.path for item in verify(bundle, matching, Asked(key=keys(tmp_path)[1])).damage] == [sign.NAME]


def test_a_damaged_bundle_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "README.md").write_text("better figures")
    with pytest.raises(IntegrityError, match=r"README\.md: changed"):
        sign_bundle(bundle, keys(tmp_path)[0], keyless=False)
    assert not (bundle / sign.NAME).exists()


def test_an_encrypted_key_takes_its_password_from_the_environment(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, password=b"secret")
    with pytest.raises(EdgepressError, match=f"Set {sign.PASSWORD}"):
        sign.sign(bundle, private)
    monkeypatch.setenv(sign.PASSWORD, "secret")
    sign.check(sign.sign(bundle, private).read_text(), public)


def test_keys_that_cannot_be_used_say_what_to_do(bundle: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    (tmp_path / "text.pem").write_text("no key")
    for path, words in ((public, "no private key"), (tmp_path / "text.pem", "no private key"), (tmp_path / "none.pem", "cannot be read")):
        with pytest.raises(EdgepressError, match=words):
            sign.sign(bundle, path)
    odd, _ = keys(tmp_path, "odd", curve="SECP256K1")
    with pytest.raises(EdgepressError, match="none of the curves") as error:
        sign.sign(bundle, odd)
    assert "openssl" in error.value.remedy and not (bundle / sign.NAME).exists()
    assert private.exists()


def test_without_cryptography_the_way_to_get_it_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, _ = keys(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(RuntimeUnavailable, match=r"edgepress\[signing\]"):
        sign.sign(bundle, private)


def program(folder: Path, script: str) -> str:
    """A stand-in for model_signing that writes its arguments down."""
    path = folder / "model_signing"
    path.write_text(f'#!/bin/sh\necho "$@" > {folder}/arguments\n{script}\n')
    path.chmod(0o755)
    return str(path)


def keyless_signature(bundle: Path, private: Path) -> None:
    """A signature over the right files that carries a certificate."""
    body = json.loads(sign.sign(bundle, private).read_text())
    body["verificationMaterial"] = {"certificate": {"rawBytes": ""}}
    (bundle / sign.NAME).write_text(json.dumps(body))


@pytest.mark.parametrize(("script", "state", "code"), [("exit 0", "valid", 0), ("echo wrong identity >&2; exit 1", "invalid", 1)])
def test_keyless_verification_asks_model_signing_with_a_trust_root_on_disk(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, code: int
) -> None:
    keyless_signature(bundle, keys(tmp_path)[0])
    (tmp_path / "trust.json").write_text("{}")
    monkeypatch.setenv(PROGRAM, program(tmp_path, script))
    found = verify(bundle, matching, Asked(signer=Signer("ci@example.org", "https://issuer", tmp_path / "trust.json")))
    assert (found.signature, found.exit_code) == (state, code)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:2] == ["verify", "sigstore"] and arguments[arguments.index("--trust_config") + 1] == str(tmp_path / "trust.json")


def test_keyless_signing_hands_a_sigstore_of_ones_own_on(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text("{}")
    monkeypatch.setenv(PROGRAM, program(tmp_path, "exit 1"))
    with pytest.raises(EdgepressError, match="did not sign"):
        sign_bundle(bundle, None, keyless=True, trust_config=trust)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[arguments.index("--trust_config") + 1] == str(trust)


@pytest.mark.parametrize(("key", "why"), [(Path("key.pem"), "a key needs no trust root"), (None, "its file is not there")])
def test_a_trust_root_that_cannot_be_used_is_named(bundle: Path, key: Path | None, why: str) -> None:
    with pytest.raises(EdgepressError, match=why):
        sign_bundle(bundle, key, keyless=key is None, trust_config=Path("absent.json"))


def test_keyless_signing_refuses_without_its_program_and_writes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRAM, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeUnavailable, match="pip install model-signing"):
        sign_bundle(bundle, None, keyless=True)
    assert not (bundle / sign.NAME).exists()


def test_keyless_signing_that_fails_says_why_and_writes_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAM, program(tmp_path, "echo no identity here >&2; exit 1"))
    with pytest.raises(EdgepressError, match="no identity here"):
        sign_bundle(bundle, None, keyless=True)
    assert not (bundle / sign.NAME).exists() and (tmp_path / "arguments").read_text().startswith("sign sigstore")


@pytest.mark.parametrize(("key", "keyless"), [(None, False), (Path("key.pem"), True)])
def test_a_bundle_is_signed_in_exactly_one_way(bundle: Path, key: Path | None, keyless: bool) -> None:
    with pytest.raises(EdgepressError, match="--key FILE, or --keyless"):
        sign_bundle(bundle, key, keyless)


@pytest.mark.parametrize(
    "given",
    [{"identity": "x"}, {"identity": "x", "issuer": "y"}, {"key": Path("k"), "identity": "x", "issuer": "y", "trust_config": Path("t")}],
)
def test_an_identity_is_checked_with_issuer_and_trust_root_or_not_at_all(given: dict[str, Any]) -> None:
    options: dict[str, Any] = {"key": None, "identity": None, "issuer": None, "trust_config": None, "live": None}
    with pytest.raises(EdgepressError, match="--identity, --issuer and --trust-config together"):
        asked_of(**options | given)
