"""nghttpd as FCM: a C server over TLS and HTTP/2 that answers from files, and the credentials that go with it."""

from __future__ import annotations

import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from .payload import ANSWER, PATH, PROJECT


def prepare(folder: Path, port: int) -> dict[str, str]:
    """Write certificates, the account and the answers; returns the settings that point Bellbuoy at them."""
    authority, key = _key(), _key()
    ca = _certificate("bench CA", authority, None, authority, ca=True)
    leaf = _certificate("127.0.0.1", key, ca.subject, authority, ca=False)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "bench@example.com",
        "token_uri": f"https://127.0.0.1:{port}/token",
    }
    (folder / "account.json").write_text(json.dumps(account))
    root = folder / "www"
    answer = root / PATH.lstrip("/")
    answer.parent.mkdir(parents=True)
    answer.write_text(ANSWER)
    (root / "token").write_text(json.dumps({"access_token": "x", "expires_in": 3600, "token_type": "Bearer"}))
    return {
        "BELLBUOY_TLS__CA_FILE": str(folder / "ca.pem"),
        "BELLBUOY_PROVIDERS__FCM__BASE_URL": f"https://127.0.0.1:{port}",
        "BELLBUOY_PROVIDERS__FCM__PROJECT_ID": PROJECT,
        "BELLBUOY_PROVIDERS__FCM__CREDENTIALS_FILE": str(folder / "account.json"),
    }


def command(folder: Path, port: int) -> list[str]:
    """The command that serves what `prepare` wrote."""
    return ["nghttpd", "-n1", "-d", str(folder / "www"), str(port), str(folder / "key.pem"), str(folder / "cert.pem")]


def _key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65_537, key_size=2_048)


def _certificate(
    name: str, key: RSAPrivateKey, issuer: x509.Name | None, signer: RSAPrivateKey, *, ca: bool
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if not ca:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())
