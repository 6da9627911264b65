"""Keys and certificates of the sandbox, made once and kept, so that a client wired before a restart stays wired.

Everything lies in one folder with private files of mode 0600:

* `ca.pem`, `ca.key`: the authority a client trusts (`[tls] ca_file`);
* `server.pem`, `server.key`: the certificate of every TLS listener, for loopback names and the configured host;
* `fcm-service-account.json`: what Google's console gives for a project (RS256 key);
* `apns-AuthKey_<key id>.p8`: what Apple's portal gives for a team (ES256 key);
* `secrets.json`: the key and team ids and the passwords and keys of the plainer systems.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_DAYS = 3_650
_SERVER_DAYS = 365
_RENEW_BEFORE = timedelta(days=30)
_UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


class Secrets(msgspec.Struct, kw_only=True):
    """The ids and shared secrets a client needs; made at random once and kept in `secrets.json`."""

    apns_team_id: str
    apns_key_id: str
    sms_account_sid: str
    sms_auth_token: str
    smtp_username: str
    smtp_password: str
    pagerduty_routing_key: str
    slack_path: str
    jira_email: str
    jira_api_token: str
    fcm_key_id: str


class Credentials:
    """The sandbox's keys, read from `folder` or made there.

    Args:
        folder: where they are kept; made with mode 0700 when it is missing.
        host: the address the listeners bind, put in the server certificate next to the loopback names.

    Making them takes up to a second of processor time, so build it in a thread.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, host: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self.server_cert_file = folder / "server.pem"
        self.server_key_file = folder / "server.key"
        self.service_account_file = folder / "fcm-service-account.json"
        self.secrets = _load_secrets(folder / "secrets.json")
        self.apns_key_file = folder / f"apns-AuthKey_{self.secrets.apns_key_id}.p8"
        self._load_certificates(host)
        self._fcm_key = _load_rsa(folder / "fcm.key")
        self._apns_key = _load_ec(self.apns_key_file)

    @property
    def fcm_public_key(self) -> rsa.RSAPublicKey:
        """What a service account's assertion is checked with."""
        return self._fcm_key.public_key()

    @property
    def apns_public_key(self) -> ec.EllipticCurvePublicKey:
        """What a provider token is checked with."""
        return self._apns_key.public_key()

    def write_service_account(self, *, project_id: str, client_email: str, token_uri: str) -> None:
        """Write the service account file anew; the token address in it changes with the listener's port."""
        account = {
            "type": "service_account",
            "project_id": project_id,
            "private_key_id": self.secrets.fcm_key_id,
            "private_key": _pem(self._fcm_key).decode(),
            "client_email": client_email,
            "client_id": "100000000000000000000",
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        }
        _write_private(self.service_account_file, msgspec.json.format(msgspec.json.encode(account), indent=2) + b"\n")

    def server_context(self, *, alpn: str | None) -> ssl.SSLContext:
        """A server-side TLS context, version 1.2 or newer; `alpn` None offers no application protocol."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.server_cert_file, self.server_key_file)
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        return context

    def _load_certificates(self, host: str) -> None:
        ca_key_file = self.folder / "ca.key"
        ca = _read_certificate(self.ca_file)
        now = datetime.now(UTC)
        if ca is None or not ca_key_file.exists() or ca.not_valid_after_utc < now + _RENEW_BEFORE:
            ca_key = ec.generate_private_key(ec.SECP256R1())
            ca = _make_ca(ca_key)
            _write_private(ca_key_file, _pem(ca_key))
            _write_private(self.ca_file, ca.public_bytes(serialization.Encoding.PEM))
        ca_key = _load_ec(ca_key_file)
        server = _read_certificate(self.server_cert_file)
        if (
            server is None
            or not self.server_key_file.exists()
            or server.issuer != ca.subject
            or server.not_valid_after_utc < now + _RENEW_BEFORE
            or set(_names(host)) - set(_names_of(server))
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            _write_private(self.server_key_file, _pem(key))
            made = _make_server(key.public_key(), ca, ca_key, host)
            _write_private(self.server_cert_file, made.public_bytes(serialization.Encoding.PEM))


def _make_ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A new authority gets a new name, so that a server certificate of the old one is seen to be foreign.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bellbuoy sandbox authority {secrets.token_hex(4)}")])
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _certificate(name, name, key.public_key(), _CA_DAYS)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_server(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, host: str
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bellbuoy sandbox")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = _certificate(name, ca.subject, key, _SERVER_DAYS)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    # TLS libraries judge validity by the machine's own clock, so the injected clock has no say here.
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(host: str) -> list[x509.GeneralName]:
    addresses = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    names = {"localhost"}
    try:
        addresses.add(ipaddress.ip_address(host))
    except ValueError:
        names.add(host)
    result: list[x509.GeneralName] = [x509.DNSName(name) for name in sorted(names)]
    result.extend(x509.IPAddress(address) for address in sorted(addresses, key=str))
    return result


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _load_secrets(path: Path) -> Secrets:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    except (FileNotFoundError, msgspec.MsgspecError):
        pass
    made = Secrets(
        apns_team_id=_upper(10),
        apns_key_id=_upper(10),
        sms_account_sid="AC" + secrets.token_hex(16),
        sms_auth_token=secrets.token_hex(16),
        smtp_username="bellbuoy",
        smtp_password=secrets.token_hex(16),
        pagerduty_routing_key=secrets.token_hex(16),
        slack_path=f"/services/T{_upper(8)}/B{_upper(8)}/{secrets.token_hex(12)}",
        jira_email="bellbuoy@example.com",
        jira_api_token=secrets.token_hex(16),
        fcm_key_id=secrets.token_hex(20),
    )
    _write_private(path, msgspec.json.encode(made))
    return made


def _upper(length: int) -> str:
    return "".join(secrets.choice(_UPPER) for _ in range(length))


def _load_rsa(path: Path) -> rsa.RSAPrivateKey:
    found = _read_key(path)
    if isinstance(found, rsa.RSAPrivateKey):
        return found
    made = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    _write_private(path, _pem(made))
    return made


def _load_ec(path: Path) -> ec.EllipticCurvePrivateKey:
    found = _read_key(path)
    if isinstance(found, ec.EllipticCurvePrivateKey):
        return found
    made = ec.generate_private_key(ec.SECP256R1())
    _write_private(path, _pem(made))
    return made


def _read_key(path: Path) -> object:
    """The key in `path`, None when there is none or it cannot be read as one."""
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, UnsupportedAlgorithm):
        return None


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    """Replace `path` in one step with a file only its owner can read."""
    draft = path.with_name(path.name + ".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)
