"""Recipients, devices and API keys in MongoDB; see `bellbuoy.ports.ledger.Registry` and `KeyStore`.

Changes are transactions: a user's document and a tombstone's change together, and several users all or none.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace
from pymongo import ReplaceOne

from bellbuoy.adapters.mongodb.database import Database, Document, Session
from bellbuoy.errors import NotFound
from bellbuoy.model.operation import ApiKey, Tombstone
from bellbuoy.model.recipient import Device, User
from bellbuoy.model.registration import invalidated, restored, rewritten, with_device, without_device

_encode = msgspec.json.Encoder().encode
_decode_user = msgspec.json.Decoder(User).decode
_decode_key = msgspec.json.Decoder(ApiKey).decode
_decode_tombstone = msgspec.json.Decoder(Tombstone).decode


class Registry:
    """Users with their devices, and the tombstones of tokens that were called gone."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def user(self, tenant: str, user_id: str) -> User | None:
        return await self._db.run(lambda: self._user(tenant, user_id))

    async def put_users(self, tenant: str, users: Sequence[User], *, now: float, keep_devices: Sequence[bool]) -> None:
        async def put(session: Session) -> None:
            for user, keep in zip(users, keep_devices, strict=True):
                before = await self._user(tenant, user.user_id, session)
                await self._write(tenant, rewritten(user, before, now, keep_devices=keep), session)

        await self._db.change(put)

    async def delete_user(self, tenant: str, user_id: str) -> None:
        done = await self._db.run(lambda: self._db.users.delete_one({"_id": _id(tenant, user_id)}))
        if not done.deleted_count:
            raise NotFound(f"there is no user {user_id}")

    async def put_device(self, tenant: str, user_id: str, device: Device, *, now: float) -> User:
        async def put(session: Session) -> User:
            user = with_device(await self._user(tenant, user_id, session) or User(user_id), device, now)
            await self._write(tenant, user, session)
            return user

        return await self._db.change(put)

    async def delete_device(self, tenant: str, user_id: str, device_id: str) -> None:
        async def delete(session: Session) -> None:
            user = await self._user(tenant, user_id, session)
            left = without_device(user, device_id) if user else None
            if left is None:
                raise NotFound(f"there is no device {device_id}")
            await self._write(tenant, left, session)

        await self._db.change(delete)

    async def invalidate(self, tombstones: Sequence[Tombstone]) -> int:
        async def bury(session: Session) -> int:
            return sum([await self._invalidate(one, session) for one in tombstones])

        return await self._db.change(bury)

    async def tombstones(self, tenant: str, *, limit: int) -> list[Tombstone]:
        find = self._db.tombstones.find({"tenant": tenant}).sort("_id", -1).limit(limit)
        found = await self._db.run(find.to_list)
        return [replace(_decode_tombstone(one["tombstone"]), restored_at=one["restored_at"]) for one in found]

    async def restore(self, tenant: str, *, user_id: str | None, provider: str | None, since: float, now: float) -> int:
        where: Document = {"tenant": tenant, "restored_at": None, "at": {"$gte": since}}
        where |= {name: value for name, value in (("user_id", user_id), ("provider", provider)) if value is not None}

        async def take_back(session: Session) -> int:
            count = 0
            for one in await self._db.tombstones.find(where, session=session).to_list():
                mark = {"$set": {"restored_at": now}}
                await self._db.tombstones.update_one({"_id": one["_id"]}, mark, session=session)
                user = await self._user(tenant, one["user_id"], session)
                count += await self._write_changed(tenant, restored(user, one["device_id"]) if user else None, session)
            return count

        return await self._db.change(take_back)

    async def _user(self, tenant: str, user_id: str, session: Session | None = None) -> User | None:
        found = await self._db.users.find_one({"_id": _id(tenant, user_id)}, session=session)
        return _decode_user(found["user"]) if found else None

    async def _write(self, tenant: str, user: User, session: Session) -> None:
        document = {"user": _encode(user)}
        where = {"_id": _id(tenant, user.user_id)}
        await self._db.users.replace_one(where, document, upsert=True, session=session)

    async def _write_changed(self, tenant: str, user: User | None, session: Session) -> int:
        """Write a user that was changed; returns 1, or 0 for None, which is no change."""
        if user is None:
            return 0
        await self._write(tenant, user, session)
        return 1

    async def _invalidate(self, stone: Tombstone, session: Session) -> int:
        user = await self._user(stone.tenant, stone.user_id, session)
        if not await self._write_changed(stone.tenant, invalidated(user, stone) if user else None, session):
            return 0
        document = {
            "_id": self._db.stamp(),
            "tenant": stone.tenant,
            "user_id": stone.user_id,
            "device_id": stone.device_id,
            "provider": stone.provider,
            "at": stone.at,
            "restored_at": None,
            "tombstone": _encode(stone),
        }
        await self._db.tombstones.insert_one(document, session=session)
        return 1


class Keys:
    """API keys, as hashes."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def keys(self) -> list[ApiKey]:
        find = self._db.keys.find().sort("_id", 1)
        return [_decode_key(one["key"]) for one in await self._db.run(find.to_list)]

    async def key(self, identity: str) -> ApiKey | None:
        found = await self._db.run(lambda: self._db.keys.find_one({"_id": identity}))
        return _decode_key(found["key"]) if found else None

    async def put_key(self, key: ApiKey) -> None:
        await self.put_keys([key])

    async def put_keys(self, keys: Sequence[ApiKey]) -> None:
        writes = [ReplaceOne({"_id": key.id}, {"key": _encode(key)}, upsert=True) for key in keys]
        if writes:
            await self._db.run(lambda: self._db.keys.bulk_write(writes, ordered=False))


def _id(tenant: str, user_id: str) -> Document:
    """A user's name; the order of the fields is part of it."""
    return {"tenant": tenant, "user_id": user_id}
