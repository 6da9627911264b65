"""API keys: made, hashed, checked. A key's secret is shown once and kept nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, NotFound
from bellbuoy.model.operation import SCOPES, ApiKey, Scope
from bellbuoy.ports.ledger import KeyStore

BOOTSTRAP_ID = "bootstrap"
BOOTSTRAP_LENGTH_MIN = 24
FOLLOW_S = 0.4
"""Seconds between two looks at the keys, so that one that is revoked anywhere is refused everywhere within a second."""

TENANT = "default"


class Keys:
    """The keys in memory, over the store that keeps their hashes.

    A key is found by the SHA-256 of its secret, so the time of a look-up says nothing about secrets: an attacker does
    not choose hashes. Secrets have 256 bits of their own, so a slow hash would protect nothing.

    Args:
        store: where they are kept.
        clock: for their age.
        copy: a file for what the store said last, so that a process can start while a shared store is away; None for no
            such file.
    """

    def __init__(self, store: KeyStore, *, clock: Clock, copy: Path | None = None) -> None:
        self._store = store
        self._clock = clock
        self._copy = copy
        self._copied: list[ApiKey] | None = None
        self._by_hash: dict[bytes, ApiKey] = {}
        self._denied: frozenset[bytes] = frozenset()

    async def load(self) -> None:
        """Read the store; later changes come through `create` and `revoke`."""
        keys = await self._store.keys()
        self._by_hash = {key.hash: key for key in keys if key.revoked_at is None}
        if self._copy is not None and keys != self._copied:
            write_secret(self._copy, msgspec.json.encode(keys).decode())
            self._copied = keys

    def recall(self, data_dir: Path) -> bool:
        """Go by the copy of an earlier run and the bootstrap key that is at hand, until the store can be read.

        Returns:
            Whether there is any key, so that it makes sense to start.

        Raises:
            ConfigurationError: the bootstrap key cannot be used.
        """
        keys: list[ApiKey] = []
        if self._copy is not None and self._copy.exists():
            with contextlib.suppress(msgspec.DecodeError):
                keys = msgspec.json.decode(self._copy.read_bytes(), type=list[ApiKey])
        self._by_hash = {key.hash: key for key in keys if key.revoked_at is None}
        secret = _at_hand(data_dir)
        if secret is not None:
            key = self._bootstrap_key(secret)
            if all(known.hash != key.hash for known in keys):  # Otherwise it is known already, or was revoked.
                self._by_hash[key.hash] = key
        return bool(self._by_hash)

    def find(self, secret: bytes) -> ApiKey | None:
        """The key with this secret, None when there is none or it was revoked."""
        digest = hashlib.sha256(secret).digest()
        key = self._by_hash.get(digest)
        if key is None or digest in self._denied:
            return None
        return key if hmac.compare_digest(key.hash, digest) else None

    def deny(self, hashes: Iterable[bytes]) -> None:
        """Refuse these for as long as this process runs, whatever the store says: it may not have been told yet."""
        self._denied |= frozenset(hashes)

    def hashes(self) -> dict[str, str]:
        """The keys that are not ended, by their ids: their hashes in hex."""
        return {key.id: key.hash.hex() for key in self._by_hash.values()}

    async def create(self, name: str, scopes: tuple[Scope, ...], *, tenant: str = TENANT) -> tuple[ApiKey, str]:
        """Make a key; returns it and its secret, which nobody can learn again."""
        identity = secrets.token_hex(6)
        secret = f"bb_{identity}_{secrets.token_urlsafe(32)}"
        key = ApiKey(identity, name, tenant, scopes, hashlib.sha256(secret.encode()).digest(), self._clock.time())
        await self._put(key)
        return key, secret

    async def all(self) -> list[ApiKey]:
        """Every key, revoked ones too."""
        return await self._store.keys()

    async def revoke(self, identity: str) -> ApiKey:
        """End a key at once. Raises NotFound."""
        key = next((k for k in await self._store.keys() if k.id == identity), None)
        if key is None:
            raise NotFound(f"there is no key {identity}")
        if key.revoked_at is None:
            key = replace(key, revoked_at=self._clock.time())
            await self._put(key)
        return key

    async def bootstrap(self, data_dir: Path) -> Path | None:
        """Make sure that there is a key with every scope.

        `BELLBUOY_BOOTSTRAP_KEY` sets it; without that the first start makes one and writes it to `bootstrap.key`.

        Returns:
            The file that was written now, None when none was.

        Raises:
            ConfigurationError: the variable's value is too short or cannot be sent in a header.
        """
        written = None
        secret = _at_hand(data_dir)
        known = next((k for k in await self._store.keys() if k.id == BOOTSTRAP_ID), None)
        if secret is None:
            if known is not None:
                return None
            secret = f"bb_{BOOTSTRAP_ID}_{secrets.token_urlsafe(32)}"
            written = data_dir / "bootstrap.key"
            write_secret(written, secret + "\n")
        key = self._bootstrap_key(secret)
        if known is None or known.hash != key.hash:
            if known is not None:
                self._by_hash.pop(known.hash, None)
            await self._put(key)
        return written

    def _bootstrap_key(self, secret: str) -> ApiKey:
        digest = hashlib.sha256(secret.encode()).digest()
        return ApiKey(BOOTSTRAP_ID, "bootstrap", TENANT, SCOPES, digest, self._clock.time())

    async def _put(self, key: ApiKey) -> None:
        await self._store.put_key(key)
        if key.revoked_at is None:
            self._by_hash[key.hash] = key
        else:
            self._by_hash.pop(key.hash, None)


def _at_hand(data_dir: Path) -> str | None:
    """The bootstrap key that this machine knows, None when it knows none. Raises ConfigurationError."""
    secret = os.environ.get("BELLBUOY_BOOTSTRAP_KEY")
    if secret is None:
        path = data_dir / "bootstrap.key"
        return path.read_text().strip() if path.exists() else None
    if not re.fullmatch(rf"[\x21-\x7e]{{{BOOTSTRAP_LENGTH_MIN},1024}}", secret):
        raise ConfigurationError(
            f"BELLBUOY_BOOTSTRAP_KEY needs at least {BOOTSTRAP_LENGTH_MIN} printable characters without spaces",
            hint="openssl rand -hex 24",
        )
    return secret


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    scratch = path.with_suffix(".new")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
