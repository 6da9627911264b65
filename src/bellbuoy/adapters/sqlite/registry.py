"""Recipients, devices and API keys in SQLite; see `bellbuoy.ports.ledger.Registry` and `KeyStore`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
from msgspec.structs import replace

from bellbuoy.adapters.sqlite.database import Connection, Database
from bellbuoy.errors import Damaged, NotFound
from bellbuoy.model.operation import ApiKey, Tombstone
from bellbuoy.model.recipient import Device, User
from bellbuoy.model.registration import invalidated, restored, rewritten, with_device, without_device

_encode = msgspec.json.Encoder().encode
_decode_user = msgspec.json.Decoder(User).decode
_decode_key = msgspec.json.Decoder(ApiKey).decode
_decode_tombstone = msgspec.json.Decoder(Tombstone).decode


def ended_in(path: Path) -> list[ApiKey]:
    """The keys that have ended in the ledger of a file that nobody uses; the file stays as it is.

    Raises:
        Damaged: it is no ledger, or cannot be read.
    """
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            rows: list[Any] = connection.execute("SELECT key FROM keys").fetchall()
            return [key for key in (_decode_key(row[0]) for row in rows) if key.has_ended]
    except (apsw.Error, msgspec.DecodeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None


class Registry:
    """Users with their devices, and the tombstones of tokens that were called gone."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def user(self, tenant: str, user_id: str) -> User | None:
        return await self._db.read(lambda connection: _user(connection, tenant, user_id))

    async def put_users(self, tenant: str, users: Sequence[User], *, now: float, keep_devices: Sequence[bool]) -> None:
        def put(connection: Connection) -> None:
            for user, keep in zip(users, keep_devices, strict=True):
                before = _user(connection, tenant, user.user_id)
                _write(connection, tenant, rewritten(user, before, now, keep_devices=keep))

        await self._db.write(put)

    async def delete_user(self, tenant: str, user_id: str) -> None:
        def delete(connection: Connection) -> None:
            connection.execute("DELETE FROM users WHERE tenant = ? AND user_id = ?", (tenant, user_id))
            if not connection.changes():
                raise NotFound(f"there is no user {user_id}")

        await self._db.write(delete)

    async def put_device(self, tenant: str, user_id: str, device: Device, *, now: float) -> User:
        def put(connection: Connection) -> User:
            user = with_device(_user(connection, tenant, user_id) or User(user_id), device, now)
            _write(connection, tenant, user)
            return user

        return await self._db.write(put)

    async def delete_device(self, tenant: str, user_id: str, device_id: str) -> None:
        def delete(connection: Connection) -> None:
            user = _user(connection, tenant, user_id)
            left = without_device(user, device_id) if user else None
            if left is None:
                raise NotFound(f"there is no device {device_id}")
            _write(connection, tenant, left)

        await self._db.write(delete)

    async def invalidate(self, tombstones: Sequence[Tombstone]) -> int:
        def bury(connection: Connection) -> int:
            return sum(_invalidate(connection, one) for one in tombstones)

        return await self._db.write(bury)

    async def tombstones(self, tenant: str, *, limit: int) -> list[Tombstone]:
        def find(connection: Connection) -> list[tuple[bytes, float | None]]:
            sql = "SELECT tombstone, restored_at FROM tombstones WHERE tenant = ? ORDER BY seq DESC LIMIT ?"
            return connection.execute(sql, (tenant, limit)).fetchall()

        rows = await self._db.read(find, scan=True)
        return [replace(_decode_tombstone(stone), restored_at=restored_at) for stone, restored_at in rows]

    async def restore(self, tenant: str, *, user_id: str | None, provider: str | None, since: float, now: float) -> int:
        def take_back(connection: Connection) -> int:
            rows = connection.execute(
                """SELECT seq, user_id, device_id FROM tombstones WHERE tenant = ?1 AND restored_at IS NULL
                     AND at >= ?2 AND (?3 IS NULL OR user_id = ?3) AND (?4 IS NULL OR provider = ?4)""",
                (tenant, since, user_id, provider),
            ).fetchall()
            count = 0
            for seq, owner, device_id in rows:
                connection.execute("UPDATE tombstones SET restored_at = ? WHERE seq = ?", (now, seq))
                user = _user(connection, tenant, owner)
                count += _write_changed(connection, tenant, restored(user, device_id) if user else None)
            return count

        return await self._db.write(take_back)


class Keys:
    """API keys, as hashes."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def keys(self) -> list[ApiKey]:
        def find(connection: Connection) -> list[tuple[bytes]]:
            return connection.execute("SELECT key FROM keys ORDER BY id").fetchall()

        return [_decode_key(row[0]) for row in await self._db.read(find)]

    async def key(self, identity: str) -> ApiKey | None:
        def find(connection: Connection) -> list[tuple[bytes]]:
            return connection.execute("SELECT key FROM keys WHERE id = ?", (identity,)).fetchall()

        rows = await self._db.read(find)
        return _decode_key(rows[0][0]) if rows else None

    async def put_key(self, key: ApiKey) -> None:
        await self.put_keys([key])

    async def put_keys(self, keys: Sequence[ApiKey]) -> None:
        rows = [(key.id, _encode(key)) for key in keys]

        def put(connection: Connection) -> None:
            for row in rows:
                connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", row)

        await self._db.write(put)


def _user(connection: Connection, tenant: str, user_id: str) -> User | None:
    sql = "SELECT user FROM users WHERE tenant = ? AND user_id = ?"
    row = connection.execute(sql, (tenant, user_id)).fetchone()
    return _decode_user(row[0]) if row else None


def _write(connection: Connection, tenant: str, user: User) -> None:
    connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (tenant, user.user_id, _encode(user)))


def _invalidate(connection: Connection, stone: Tombstone) -> int:
    user = _user(connection, stone.tenant, stone.user_id)
    if not _write_changed(connection, stone.tenant, invalidated(user, stone) if user else None):
        return 0
    connection.execute(
        "INSERT INTO tombstones(tenant, user_id, device_id, provider, at, tombstone) VALUES (?, ?, ?, ?, ?, ?)",
        (stone.tenant, stone.user_id, stone.device_id, stone.provider, stone.at, _encode(stone)),
    )
    return 1


def _write_changed(connection: Connection, tenant: str, user: User | None) -> int:
    """Write a user that was changed; returns 1, or 0 for None, which is no change."""
    if user is None:
        return 0
    _write(connection, tenant, user)
    return 1
