"""Ed25519 signatures (RFC 8032) over evidence, with a key that is made when it is first needed."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bellbuoy.errors import ConfigurationError

_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class FileSigner:
    """Implements `bellbuoy.ports.audit.Signer` with a key in a file that only its owner can read.

    Raises:
        ConfigurationError: the file is there and is no such key, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        try:
            if not path.exists():
                _make(path)
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the key {path} cannot be used", hint="put it back as it was, or remove it and a new one is made"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"the key {path} is not one of Ed25519", hint="remove it and a new one is made")
        self._key = key

    @property
    def public(self) -> str:
        """The public half, in hex."""
        return self._key.public_key().public_bytes(*_RAW).hex()

    def sign(self, data: bytes) -> str:
        """The signature, in hex."""
        return self._key.sign(data).hex()


def is_signed(public: str, signature: str, data: bytes) -> bool:
    """Implements `bellbuoy.ports.audit.Verifier`."""
    try:
        raw = bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(raw, data)
    except (InvalidSignature, ValueError):
        return False
    # Written in another way, in capitals say, it would be a change that nobody sees.
    return raw.hex() == signature


def _make(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    scratch = path.with_suffix(".new")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
