"""Sealing what leaves this machine: compressed, then AES-256-GCM with the object's name authenticated.

The key file holds one key a line, `ID KEY` with KEY as 64 hexadecimal digits or base64 of 32 bytes; `#` begins a
comment. The last line's key seals, any opens what names its id, so a new key is added below and the old ones stay for
as long as anything that they sealed. A nonce is 12 random bytes (NIST SP 800-38D, 8.2.2), which is safe for 2^32
objects of one key; at one every ten seconds that is thirteen centuries.

Without a key an object is only framed with its checksum: that finds damage, and keeps nothing secret.

    "BBK1", length of the key's id (1), the key's id, nonce (12), ciphertext with its tag (16)
    "BBK1", 0, SHA-256 of the name, a zero byte and what follows (32), the compressed data
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bellbuoy.errors import ConfigurationError, Damaged

MAGIC = b"BBK1"
PLAIN_BYTES_MAX = 256 * 1024 * 1024
"""What an object may hold once it is decompressed; more is none of ours."""
COMMAND_S_MAX = 30.0
"""For the command of a secrets manager, which asks a server."""
_LEVEL = 1  # Records are text and shrink to a third; more effort gains little.
_NONCE, _DIGEST = 12, 32
_LINE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+(\S+)$")


class KeyRing:
    """Implements `bellbuoy.ports.archive.Sealer`.

    Args:
        keys: by their ids, in the order of the file; the last one seals. Empty frames without encryption.
    """

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = {name: AESGCM(key) for name, key in keys.items()}
        self._newest = next(reversed(keys), None)

    @property
    def encrypts(self) -> bool:
        """Whether what is sealed is secret."""
        return self._newest is not None

    def seal(self, name: str, data: bytes) -> bytes:
        """See `Sealer.seal`."""
        packed = zlib.compress(data, _LEVEL)
        if self._newest is None:
            return MAGIC + b"\0" + _digest(name, packed) + packed
        key = self._newest.encode()
        head = MAGIC + bytes([len(key)]) + key
        nonce = secrets.token_bytes(_NONCE)
        return head + nonce + self._keys[self._newest].encrypt(nonce, packed, _bound(head, name))

    def open(self, name: str, sealed: bytes) -> bytes:
        """See `Sealer.open`."""
        if len(sealed) < len(MAGIC) + 1 or not sealed.startswith(MAGIC):
            raise Damaged(f"{name} is no object of a backup")
        at = len(MAGIC) + 1 + sealed[len(MAGIC)]
        head, rest = sealed[:at], sealed[at:]
        if len(head) > len(MAGIC) + 1:
            return _unpacked(name, self._decrypted(name, head, rest))
        if self.encrypts:
            # Whoever can write to the target could otherwise put an object there that needs no key.
            raise Damaged(f"{name} is not encrypted", hint="[backup] encrypt = false reads a target without encryption")
        return _unpacked(name, _checked(name, rest))

    def _decrypted(self, name: str, head: bytes, rest: bytes) -> bytes:
        try:
            key = head[len(MAGIC) + 1 :].decode("ascii")
        except UnicodeDecodeError:
            raise Damaged(f"{name} names no key") from None
        if not _LINE.match(f"{key} x"):
            raise Damaged(f"{name} names no key")
        if key not in self._keys:
            raise ConfigurationError(
                f"{name} was sealed with the key {key}, which is not among the keys",
                hint="add it in [backup] key_file or key_command; if there never was such a key, the object is damaged",
            )
        try:
            return self._keys[key].decrypt(rest[:_NONCE], rest[_NONCE:], _bound(head, name))
        except (InvalidTag, ValueError):
            raise Damaged(f"{name} was changed since it was written, or written under another name") from None


def read_keys(path: Path) -> KeyRing:
    """The keys of a key file.

    Raises:
        ConfigurationError: it cannot be read, others may read it, or a line is no key; no key is ever quoted.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"the key file {path} cannot be read", hint="make one with: bellbuoy backup key >> FILE; chmod 600 FILE"
        ) from None
    if mode & 0o077:
        raise ConfigurationError(f"others may read the key file {path}", hint=f"chmod 600 {path}")
    return _parsed(text, f"the key file {path}")


def ask_keys(command: Sequence[str]) -> KeyRing:
    """The keys that a command prints as a key file has them, as that of a secrets manager does.

    Args:
        command: the program and its arguments; no shell takes part.

    Raises:
        ConfigurationError: it cannot be run, fails, takes longer than `COMMAND_S_MAX`, or a line is no key. What it
            printed is never quoted.
    """
    name = command[0]
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own command, from the settings
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S_MAX, check=True
        )
        text = done.stdout.decode("ascii")
    except OSError as error:
        why = error.strerror or "it cannot be run"
    except subprocess.TimeoutExpired:
        why = f"it took longer than {COMMAND_S_MAX:g} s"
    except subprocess.CalledProcessError as error:
        why = f"it ended with status {error.returncode}"
    except UnicodeDecodeError:
        why = "it printed what is no key"
    else:
        return _parsed(text, f"what {name} printed")
    raise ConfigurationError(
        f"[backup] key_command: {name}: {why}", hint="run it by hand; it has to print lines of ID KEY"
    )


def _parsed(text: str, whence: str) -> KeyRing:
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.partition("#")[0].strip()
        if not stripped:
            continue
        match = _LINE.match(stripped)
        key = _key(match[2]) if match else None
        if match is None or key is None or match[1] in keys:
            raise ConfigurationError(
                f"line {number} of {whence} is no key of its own",
                hint="ID KEY, with KEY as 64 hexadecimal digits or base64 of 32 bytes, and each ID once",
            )
        keys[match[1]] = key
    if not keys:
        raise ConfigurationError(f"{whence} holds no key", hint="bellbuoy backup key >> FILE")
    return KeyRing(keys)


def new_key(name: str) -> str:
    """A line for a key file. Raises ConfigurationError for a name that no line may have."""
    line = f"{name} {secrets.token_hex(32)}"
    if "#" in name or " " in name or not _LINE.match(line):
        raise ConfigurationError(
            f"{name!r} cannot be the ID of a key", hint="up to 64 letters, digits, dots, underscores and hyphens"
        )
    return line


def _key(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == 32 else None


def _bound(head: bytes, name: str) -> bytes:
    return head + b"\0" + name.encode()


def _digest(name: str, packed: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + packed).digest()


def _checked(name: str, rest: bytes) -> bytes:
    packed = rest[_DIGEST:]
    if not secrets.compare_digest(_digest(name, packed), rest[:_DIGEST]):
        raise Damaged(f"{name} was changed since it was written, or written under another name")
    return packed


def _unpacked(name: str, packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, PLAIN_BYTES_MAX)
    except zlib.error:
        raise Damaged(f"{name} cannot be decompressed") from None
    if not unpacking.eof or unpacking.unused_data:
        raise Damaged(f"{name} was cut short, or holds more than an object may")
    return data
