"""Recipients that several processes remember: never older than is said, and there when the ledger is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bellbuoy.adapters.memory_shared import MemoryRecipients
from bellbuoy.adapters.shared_users import PAUSE_S, SharedUsers
from bellbuoy.clock import ManualClock
from bellbuoy.errors import StoreError, Unavailable
from bellbuoy.model.recipient import User

AWAY = Unavailable("away")


class Registry:
    """The part of a ledger that keeps users; fails while it is told to."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.reads = 0
        self.failure: StoreError | None = None
        self.gate: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return None  # What a ledger has besides.

    async def user(self, tenant: str, user_id: str) -> User | None:
        self.reads += 1
        found = self.users.get(user_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return found

    async def put_users(self, tenant: str, users: list[User], **_: Any) -> None:
        self.users.update({user.user_id: user for user in users})

    async def delete_user(self, tenant: str, user_id: str) -> None:
        del self.users[user_id]

    async def restore(self, tenant: str, **_: Any) -> int:
        return 0


class Recipients(MemoryRecipients):
    """What is shared; away while it is told to be, and then nobody hears of a change."""

    failure: StoreError | None = None

    def lose(self, failure: StoreError | None) -> None:
        self.failure, self.live = failure, failure is None
        for changed in self._listening:
            changed(None)

    async def find(self, tenant: str, user_id: str) -> User | None:
        self._maybe_fail()
        return await super().find(tenant, user_id)

    async def keep(self, tenant: str, user: User, *, after: str = "") -> bool:
        self._maybe_fail()
        return await super().keep(tenant, user, after=after)

    async def forget(self, keys: Any, *, change: str) -> None:
        self._maybe_fail()
        await super().forget(keys, change=change)

    def _maybe_fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Nodes:
    """Two processes with one ledger and one memory."""

    def __init__(self, fresh_s: float = 1.0) -> None:
        self.clock = ManualClock()
        self.registry = Registry()
        self.shared = Recipients(clock=self.clock)
        self.a, self.b = (
            SharedUsers(
                self.registry,  # type: ignore[arg-type]
                self.shared,
                owner=owner,
                users_max=2,
                fresh_s=fresh_s,
                clock=self.clock,
            )
            for owner in "ab"
        )

    async def __aenter__(self) -> Nodes:
        self._tasks = [asyncio.create_task(one.run()) for one in (self.a, self.b)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def put(self, node: SharedUsers, email: str, user_id: str = "anna") -> None:
        await node.put_users("t", [User(user_id, email=email)], now=0.0, keep_devices=[True])


def email(user: User | None) -> str | None:
    return user.email if user is not None else None


async def test_the_ledger_is_asked_again_after_a_while_and_every_time_while_nothing_is_heard() -> None:
    async with Nodes() as nodes:
        await nodes.put(nodes.a, "1@x.y")
        await nodes.clock.advance(0.0)
        nodes.registry.reads = 0
        for _ in range(3):
            assert email(await nodes.b.user("t", "anna")) == "1@x.y"
        assert nodes.registry.reads == 1
        await nodes.clock.advance(1.0)
        await nodes.b.user("t", "anna")
        assert nodes.registry.reads == 2
        nodes.shared.live = False
        await nodes.b.user("t", "anna")
        await nodes.b.user("t", "anna")
        assert nodes.registry.reads == 4
    async with Nodes(fresh_s=0.0) as nodes:
        assert [await nodes.a.user("t", "nobody") for _ in range(3)] == [None] * 3
        assert nodes.registry.reads == 3


async def test_a_change_is_seen_by_the_other_at_once() -> None:
    async with Nodes() as nodes:
        await nodes.put(nodes.a, "1@x.y")
        assert email(await nodes.b.user("t", "anna")) == "1@x.y"
        await nodes.put(nodes.a, "2@x.y")
        assert email(await nodes.b.user("t", "anna")) == "2@x.y"
        await nodes.a.delete_user("t", "anna")
        assert await nodes.b.user("t", "anna") is None
        await nodes.put(nodes.a, "3@x.y")
        await nodes.b.user("t", "anna")
        nodes.registry.users["anna"] = User("anna", email="4@x.y")
        await nodes.a.restore("t")
        assert email(await nodes.b.user("t", "anna")) == "4@x.y"


async def test_what_was_read_before_a_change_is_not_remembered_after_it() -> None:
    async with Nodes() as nodes:
        await nodes.put(nodes.a, "1@x.y")
        await nodes.clock.advance(0.0)
        nodes.registry.gate = asyncio.Event()
        reading = asyncio.create_task(nodes.b.user("t", "anna"))
        await asyncio.sleep(0)
        await nodes.put(nodes.a, "2@x.y")
        nodes.registry.gate.set()
        assert email(await reading) == "1@x.y"
        assert email(await nodes.b.user("t", "anna")) == "2@x.y"


async def test_with_the_ledger_away_one_knows_what_the_other_wrote_or_read() -> None:
    async with Nodes() as nodes:
        nodes.registry.users["ben"] = User("ben", email="ben@x.y")
        await nodes.put(nodes.a, "1@x.y")
        await nodes.b.user("t", "anna")
        await nodes.put(nodes.a, "2@x.y")
        await nodes.a.user("t", "ben")
        await nodes.clock.advance(0.0)
        nodes.registry.failure = AWAY
        assert email(await nodes.b.user("t", "anna")) == "2@x.y"
        assert email(await nodes.b.user("t", "ben")) == "ben@x.y"
        with pytest.raises(Unavailable):
            await nodes.b.user("t", "carl")


async def test_with_both_away_each_goes_by_what_it_knew() -> None:
    async with Nodes() as nodes:
        await nodes.put(nodes.a, "1@x.y")
        await nodes.b.user("t", "anna")
        nodes.shared.lose(AWAY)
        nodes.registry.failure = AWAY
        assert email(await nodes.b.user("t", "anna")) == "1@x.y"
        with pytest.raises(Unavailable):
            await nodes.a.user("t", "ben")


async def test_what_could_not_be_told_is_told_when_it_can_be() -> None:
    async with Nodes() as nodes:
        await nodes.put(nodes.a, "1@x.y")
        await nodes.b.user("t", "anna")
        await nodes.clock.advance(0.0)
        nodes.shared.failure = AWAY  # Only `a` cannot reach it: `b` goes on believing that it hears everything.
        await nodes.put(nodes.a, "2@x.y")
        assert email(await nodes.b.user("t", "anna")) == "1@x.y"
        await nodes.clock.advance(1.0)
        assert email(await nodes.b.user("t", "anna")) == "2@x.y", "no older than it is said to be"
        await nodes.put(nodes.a, "3@x.y")
        nodes.shared.failure = None
        await nodes.clock.advance(PAUSE_S)
        assert email(await nodes.b.user("t", "anna")) == "3@x.y"


async def test_no_more_users_are_remembered_than_allowed() -> None:
    async with Nodes(fresh_s=60.0) as nodes:
        for name in ("anna", "ben", "carl"):
            nodes.registry.users[name] = User(name)
            await nodes.a.user("t", name)
        nodes.registry.reads = 0
        for name in ("carl", "ben", "anna"):
            await nodes.a.user("t", name)
        assert nodes.registry.reads == 1
