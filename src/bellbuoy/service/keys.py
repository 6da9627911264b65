"""API keys: made, hashed, checked. A key's secret is shown once and kept nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, Conflict, NotFound, Unavailable
from bellbuoy.model.operation import SCOPES, ApiKey, Scope
from bellbuoy.ports.ledger import KeyStore
from bellbuoy.service.ending import BOOTSTRAP_ID, Ending

BOOTSTRAP_LENGTH_MIN = 24
FOLLOW_S = 0.4
"""Seconds between two looks at the keys, so that one that is revoked anywhere is refused everywhere within a second."""

TENANT = "default"
_PASSES_MAX = 16
"""Looks at the keys until one finds none to end: what is made during one is found by the next."""
_GATE_ID = "~gate"
"""Of the record that says, by its name, which key alone may make others while all but that one end."""


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
        self._last: dict[str, ApiKey] = {}
        self._denied: frozenset[bytes] = frozenset()
        self._ending = Ending()

    async def load(self) -> None:
        """Read the store; later changes come through `create` and `revoke`."""
        keys = await self._store.keys()
        self._last = {key.id: key for key in keys}
        self._go_by(keys)
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
        secret = _at_hand(data_dir)
        if secret is not None:
            key = self._bootstrap_key(secret)
            if all(known.hash != key.hash for known in keys):  # Otherwise it is known already, or was revoked.
                keys.append(key)
        self._last = {key.id: key for key in keys}
        self._go_by(keys)
        return bool(self._by_hash)

    def find(self, secret: bytes) -> ApiKey | None:
        """The key with this secret, None when there is none or it was revoked."""
        digest = hashlib.sha256(secret).digest()
        key = self._by_hash.get(digest)
        if key is None or digest in self._denied:
            return None
        return key if hmac.compare_digest(key.hash, digest) else None

    def deny(self, ending: Ending) -> None:
        """Refuse these whatever the store says, which may not have been told yet."""
        self._denied |= frozenset(bytes.fromhex(one) for one in ending.keys.values())
        if ending != self._ending:
            self._ending = ending
            self._go_by(list(self._by_hash.values()))

    def hashes(self) -> dict[str, str]:
        """The keys that are not ended, by their ids: their hashes in hex."""
        return {key.id: key.hash.hex() for key in self._by_hash.values()}

    def remembered(self, identity: str) -> ApiKey | None:
        """The key of an id as the store had it last, None when this process has not heard of it."""
        return self._last.get(identity) if identity != _GATE_ID else None

    async def create(
        self, name: str, scopes: tuple[Scope, ...], *, tenant: str = TENANT, by: str | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and its secret, which nobody can learn again.

        Args:
            name, scopes, tenant: of the new one.
            by: the key that asks, which has to live until after the new one is written: who ends it either finds the
                new one or is found here. None for nobody's.

        Raises:
            Conflict: the key that asks has ended, or all but another are ending; the new one has ended too.
        """
        identity = secrets.token_hex(6)
        secret = f"bb_{identity}_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(secret.encode()).digest()
        key = ApiKey(identity, name, tenant, scopes, digest, self._clock.time(), made_by=by)
        await self._store.put_key(key)
        if by is not None and not await self._lives(by):
            await self._put(replace(key, revoked_at=self._clock.time()))
            raise Conflict("the key that asks has ended", hint="ask with one that works")
        self._by_hash[key.hash] = self._last[key.id] = key
        return key, secret

    async def all(self) -> list[ApiKey]:
        """Every key, revoked ones too."""
        return [key for key in await self._store.keys() if key.id != _GATE_ID]

    async def revoke(self, identity: str) -> ApiKey:
        """End a key at once. Raises NotFound."""
        key = await self._store.key(identity)
        if key is None or identity == _GATE_ID:
            raise NotFound(f"there is no key {identity}")
        if not key.has_ended:
            key = replace(key, revoked_at=key.revoked_at or self._clock.time(), replaced=False)
            await self._put(key)
        return key

    async def end(self, ending: Ending) -> list[str]:
        """End keys, and look again until there is nothing new to end. Those that the store does not know are kept as
        ended, so that no older copy of it brings them back.

        Returns:
            The ids of those that ended now.

        Raises:
            Unavailable: keys are made faster than they end; those that were found have ended.
        """
        if ending.all_but is None:
            return await self._end(ending)
        # Written before the first look: whoever makes a key either sees this after it, or the look finds the key.
        await self._store.put_key(self._gate(ending.all_but))
        ended = await self._end(ending)
        await self._store.put_key(self._gate(""))
        return ended

    async def _end(self, ending: Ending) -> list[str]:
        ended: list[str] = []
        for _ in range(_PASSES_MAX):
            keys = await self._store.keys()
            doomed, now = ending.of(keys), self._clock.time()
            going = [key for key in keys if key.id in doomed and not key.has_ended]
            # Of one that was replaced it stays known since when it makes no others.
            found = [replace(key, revoked_at=key.revoked_at or now, replaced=False) for key in going]
            known = {key.hash.hex() for key in keys}
            found += [_ended(one, bytes.fromhex(h), now) for one, h in ending.keys.items() if h not in known]
            if not found:
                return ended
            self._denied |= {key.hash for key in found}
            await self._store.put_keys(found)
            for key in found:
                self._by_hash.pop(key.hash, None)
            ended += [key.id for key in found]
        raise Unavailable("keys are made faster than they end", hint="stop whoever makes them", retry_after_s=1.0)

    async def bootstrap(self, data_dir: Path) -> Path | None:
        """Make sure that there is a key with every scope.

        `BELLBUOY_BOOTSTRAP_KEY` sets it; without that the first start makes one and writes it to `bootstrap.key`.

        Returns:
            The file that was written now, None when none was.

        Raises:
            ConfigurationError: the variable's value is too short or cannot be sent in a header, or the key ended before
                another took its place, and stays so.
        """
        written = None
        secret = _at_hand(data_dir)
        keys = await self._store.keys()
        known = next((k for k in keys if k.id == BOOTSTRAP_ID), None)
        if secret is None:
            if known is not None:
                return None
            secret = f"bb_{BOOTSTRAP_ID}_{secrets.token_urlsafe(32)}"
            written = data_dir / "bootstrap.key"
            write_secret(written, secret + "\n")
        key = self._bootstrap_key(secret)
        if any(k.hash == key.hash and k.id != BOOTSTRAP_ID and k.has_ended for k in keys):
            raise ConfigurationError(
                "the bootstrap key has ended, and another took its place",
                hint=f"delete {data_dir / 'bootstrap.key'} and set a new BELLBUOY_BOOTSTRAP_KEY, never an earlier one",
            )
        if known is None or known.hash != key.hash:
            if known is not None:
                self._by_hash.pop(known.hash, None)
                # Otherwise nobody would know of one that has ended, nor could the other be ended any more.
                aside = _ended(BOOTSTRAP_ID, known.hash, known.revoked_at or self._clock.time())
                await self._store.put_key(replace(aside, replaced=not known.has_ended))
            # What is said of it as replaced would end it now with all others.
            await self._store.put_keys([replace(k, hash=b"", replaced=False) for k in keys if k.hash == key.hash])
            await self._put(key)
        return written

    def _bootstrap_key(self, secret: str) -> ApiKey:
        digest = hashlib.sha256(secret.encode()).digest()
        return ApiKey(BOOTSTRAP_ID, "bootstrap", TENANT, SCOPES, digest, self._clock.time())

    def _gate(self, identity: str) -> ApiKey:
        now = self._clock.time()
        return ApiKey(_GATE_ID, identity, TENANT, (), b"", now, now)

    async def _lives(self, identity: str) -> bool:
        """Whether the store and this process both let the key go on; the store may not have been told yet."""
        gate = await self._store.key(_GATE_ID)
        if gate is not None and gate.name not in ("", identity):
            return False
        key = await self._store.key(identity)
        if key is None or key.revoked_at is not None or key.hash in self._denied:
            return False
        return not self._ending or key.hash in self._by_hash

    def _go_by(self, keys: list[ApiKey]) -> None:
        doomed = self._ending.of(keys) if self._ending else frozenset()
        self._by_hash = {key.hash: key for key in keys if key.revoked_at is None and key.id not in doomed}

    async def _put(self, key: ApiKey) -> None:
        await self._store.put_key(key)
        if key.revoked_at is None:
            self._by_hash[key.hash] = key
        else:
            self._by_hash.pop(key.hash, None)


def _ended(identity: str, digest: bytes, at: float) -> ApiKey:
    """What is kept of a key that ended and whose id is another's by now, or was never there, so that it stays so."""
    return ApiKey(f"{identity}-{digest.hex()[:12]}", identity, TENANT, (), digest, at, at)


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
