"""Signatures beside the real `model_signing` program, and keyless ones from end to end without a network, by a sigstore of our own.

    EDGEPRESS_MODEL_SIGNING=ENV/bin/model_signing python benchmarks/verdicts/signing.py RUN_DIR

Works on a copy of the run's bundle. With keys of two curves, the program checks what edgepress signed, and edgepress what it signed.
Then a certificate authority (Fulcio's API) and a transparency log (Rekor's, version 1) answer on the loopback device as long as the
bundle is signed with the identity of a GitLab job, and are gone when it is verified: as signed, for another identity, for another issuer,
with another trust root, and with one byte flipped. Exits with 1 where one of these goes wrong.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

IDENTITY, ISSUER = "https://gitlab.example/team/model//.gitlab-ci.yml@refs/heads/main", "https://gitlab.example"
_ISSUER_OID, _SCT_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA = ec.ECDSA(hashes.SHA256())
Json = dict[str, Any]


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Key:
    """A P-256 key, known by the hash of its public part."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.spki).digest()

    def signed(self, content: bytes) -> bytes:
        return self.private.sign(content, _SHA)

    def trusted(self, url: str, start: str) -> Json:
        """As a log of a trust root."""
        key = {"rawBytes": b64(self.spki), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": {"start": start}}
        return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": key, "logId": {"keyId": b64(self.id)}}


class Sigstore:
    """Keys, the root certificate, and what the two services answer."""

    def __init__(self) -> None:
        self.authority, self.certificate_log, self.log = Key(), Key(), Key()
        self.start = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(minutes=5)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.root = (
            self._certificate(name, name, self.authority.private.public_key(), days=2)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.authority.private, hashes.SHA256())
        )

    def trust(self, url: str) -> Json:
        """The ClientTrustConfig of these services."""
        start = self.start.strftime("%Y-%m-%dT%H:%M:%SZ")
        service = [{"url": url, "majorApiVersion": 1, "validFor": {"start": start}, "operator": "loopback"}]
        chain = {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]}
        subject = {"organization": "loopback", "commonName": "loopback"}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [self.log.trusted(url, start)],
                "certificateAuthorities": [{"subject": subject, "uri": url, "certChain": chain, "validFor": {"start": start}}],
                "ctlogs": [self.certificate_log.trusted(url, start)],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                **{"caUrls": service, "oidcUrls": service, "rekorTlogUrls": service, "tsaUrls": []},
                **{"rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"}},
            },
        }

    def certify(self, request: Json) -> Json:
        """Fulcio: a certificate with the identity, ten minutes long, with the certificate log's promise in it (RFC 6962, section 3)."""
        public = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"])).public_key()
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            self._certificate(x509.Name([]), self.root.subject, public, days=0)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(IDENTITY)]), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_OID, ISSUER.encode()), critical=False)
        )
        body = builder.sign(self.authority.private, hashes.SHA256()).tbs_certificate_bytes
        now = int(time.time() * 1000)
        entry = self.authority.id + len(body).to_bytes(3, "big") + body
        promise = self.certificate_log.signed(struct.pack("!BBQH", 0, 0, now, 1) + entry + struct.pack("!H", 0))
        sct = struct.pack("!B32sQHBBH", 0, self.certificate_log.id, now, 0, 4, 3, len(promise)) + promise
        scts = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        leaf = builder.add_extension(x509.UnrecognizedExtension(_SCT_OID, bytes([0x04, len(scts)]) + scts), critical=False)
        chain = [leaf.sign(self.authority.private, hashes.SHA256()), self.root]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": [each.public_bytes(Encoding.PEM).decode() for each in chain]}}}

    def record(self, request: Json) -> Json:
        """Rekor: the only entry of a log, whose root hash is that entry's."""
        proposed = request["spec"]["proposedContent"]
        envelope = json.loads(proposed["envelope"])
        sha = {
            "envelopeHash": hashlib.sha256(proposed["envelope"].encode()).hexdigest(),
            "payloadHash": hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest(),
        }
        signatures = [{"signature": each["sig"], "verifier": proposed["verifiers"][0]} for each in envelope["signatures"]]
        spec = {name: {"algorithm": "sha256", "value": value} for name, value in sha.items()} | {"signatures": signatures}
        body = _canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        entry = {"body": b64(body), "integratedTime": int(time.time()), "logID": self.log.id.hex(), "logIndex": 0}
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"loopback\n1\n{b64(root)}\n"
        checkpoint = f"{note}\n\N{EM DASH} loopback {b64(self.log.id[:4] + self.log.signed(note.encode()))}\n"
        proof = {"checkpoint": checkpoint, "hashes": [], "logIndex": 0, "rootHash": root.hex(), "treeSize": 1}
        promise = b64(self.log.signed(_canonical(entry)))
        return {root.hex(): entry | {"verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}}

    def _certificate(self, subject: x509.Name, issuer: x509.Name, key: Any, days: int) -> x509.CertificateBuilder:
        end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days, minutes=10)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.private.public_key())
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        return (
            builder.serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(end)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _canonical(value: Json) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def serving(sigstore: Sigstore) -> Iterator[str]:
    """The address at which both services answer, on the loopback device."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The issuer's discovery document, which is asked for even where the token is at hand."""
            self.answer({"authorization_endpoint": ISSUER, "token_endpoint": ISSUER})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(sigstore.record(request) if "log" in self.path else sigstore.certify(request))

        def answer(self, value: Json) -> None:
            answer = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def token() -> str:
    """The identity token of a GitLab job, for the audience `sigstore`."""
    claims = {"iss": ISSUER, "sub": IDENTITY, "aud": "sigstore", "iat": int(time.time()), "exp": int(time.time()) + 600}
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in [*parts, b"unchecked"])


def edgepress(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    command = [sys.executable, "-m", "edgepress", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
    return done.returncode, (done.stdout + done.stderr).strip()


def by_key(bundle: Path, folder: Path, curve: ec.EllipticCurve) -> int:
    """Each side checks the other's signature; how many checks went wrong."""
    key, public, signature = ec.generate_private_key(curve), folder / "key.pub", bundle / "model.sig"
    private = folder / "key.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    program, place = os.environ["EDGEPRESS_MODEL_SIGNING"], [str(bundle), "--signature", str(signature)]
    ours = edgepress("sign", bundle, "--key", private)[0]
    checked = subprocess.run([program, "verify", "key", *place, "--public_key", str(public)], capture_output=True).returncode
    signature.unlink()
    theirs = subprocess.run([program, "sign", "key", *place, "--private_key", str(private)], capture_output=True).returncode
    found = edgepress("verify", bundle, "--key", public)[0]
    signature.unlink()
    print(
        f"{curve.name}: edgepress signs {ours}, model_signing verifies {checked}; model_signing signs {theirs}, edgepress verifies {found}"
    )
    return sum(code != 0 for code in (ours, checked, theirs, found))


def main() -> int:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "bundle").is_dir() or "EDGEPRESS_MODEL_SIGNING" not in os.environ:
        print("usage: EDGEPRESS_MODEL_SIGNING=ENV/bin/model_signing signing.py RUN_DIR (with a bundle)", file=sys.stderr)
        return 2
    wrong = 0
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = shutil.copytree(Path(sys.argv[1]) / "bundle", folder / "bundle")
        wrong += sum(by_key(bundle, folder, curve) for curve in (ec.SECP256R1(), ec.SECP521R1()))
        sigstore, trust, other = Sigstore(), folder / "trust.json", folder / "other.json"
        with serving(sigstore) as url:
            trust.write_text(json.dumps(sigstore.trust(url)))
            other.write_text(json.dumps(Sigstore().trust(url)))
            home = {"GITLAB_CI": "true", "SIGSTORE_ID_TOKEN": token()}
            code, printed = edgepress("sign", bundle, "--keyless", "--trust-config", trust, **home)
        print(f"sign: exit {code}: {printed.splitlines()[-1] if printed else ''}")
        wrong += code != 0

        def verify(what: str, passes: bool, identity: str = IDENTITY, issuer: str = ISSUER, root: Path = trust) -> None:
            nonlocal wrong
            code, printed = edgepress("verify", bundle, "--identity", identity, "--issuer", issuer, "--trust-config", root)
            words = " ".join(printed.split())
            print(f"verify {what}: exit {code}: {words[words.find('fail ') : words.find(' target replay')] if code else words[-60:]}")
            wrong += (code == 0) is not passes

        verify("as signed", True)
        verify("another identity", False, identity="https://gitlab.example/other//.gitlab-ci.yml@refs/heads/main")
        verify("another issuer", False, issuer="https://accounts.example")
        verify("another trust root", False, root=other)
        path = bundle / "README.md"
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        verify("one byte flipped", False)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
