"""One suite for what processes tell each other: what `bellbuoy.ports.shared` promises, in memory and in Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from bellbuoy.adapters.memory_shared import (
    MemoryAnnouncements,
    MemoryCircuits,
    MemoryFlags,
    MemoryIdempotency,
    MemoryLocks,
    MemoryRateLimit,
    MemoryRecipients,
)
from bellbuoy.adapters.redis import (
    Link,
    RedisAnnouncements,
    RedisCircuits,
    RedisFlags,
    RedisIdempotency,
    RedisLocks,
    RedisRateLimit,
    RedisRecipients,
)
from bellbuoy.clock import SystemClock
from bellbuoy.errors import ConfigurationError, Full, Unavailable
from bellbuoy.model.recipient import Device, RegisteredDevice, User
from bellbuoy.ports.shared import (
    Announcements,
    Circuits,
    FlagStore,
    IdempotencyMemory,
    Locks,
    RateLimit,
    Recipients,
    Remembered,
    UserKey,
)
from tests.support.redis import RedisServer

ANNA = User("anna", email="a@example.com", devices=(RegisteredDevice(Device("d", "android", "fcm", "t"), 1.5),))


@dataclass
class Process:
    """What one process has of it."""

    recipients: Recipients
    idempotency: IdempotencyMemory
    flags: FlagStore
    announcements: Announcements
    limits: RateLimit
    locks: Locks
    circuits: Circuits


@dataclass
class Linked(Process):
    """The same over Redis."""

    link: Link
    running: asyncio.Task[None]


def in_memory() -> Process:
    clock = SystemClock()
    return Process(
        MemoryRecipients(clock=clock),
        MemoryIdempotency(clock=clock),
        MemoryFlags(),
        MemoryAnnouncements(clock=clock),
        MemoryRateLimit(clock=clock),
        MemoryLocks(clock=clock),
        MemoryCircuits(clock=clock),
    )


def over_redis(url: str) -> Linked:
    link = Link(url, clock=SystemClock(), rng=Random())
    return Linked(
        RedisRecipients(link),
        RedisIdempotency(link),
        RedisFlags(link),
        RedisAnnouncements(link),
        RedisRateLimit(link),
        RedisLocks(link),
        RedisCircuits(link),
        link,
        asyncio.create_task(link.run()),
    )


async def until(what: Callable[[], bool | Awaitable[bool]], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            found = what()
            if found is True or (not isinstance(found, bool) and await found):
                return
            await asyncio.sleep(0.01)


Open = Callable[[], Any]


@pytest.fixture(params=["memory", "redis"])
async def open_process(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens another process' view as often as a test wants; in memory there is but one."""
    if request.param == "memory":
        shared = in_memory()
        yield lambda: shared
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    server.lose_everything()
    opened: list[Linked] = []

    def make() -> Linked:
        opened.append(over_redis(server.uri()))
        return opened[-1]

    yield make
    await close(*opened)


async def close(*opened: Linked) -> None:
    for one in opened:
        one.running.cancel()
        await asyncio.gather(one.running, return_exceptions=True)
        await one.link.aclose()


@pytest.fixture
async def linked(redis_server: RedisServer) -> AsyncIterator[Linked]:
    """A process that listens to Redis."""
    redis_server.lose_everything()
    one = over_redis(redis_server.uri())
    await until(lambda: one.link.live)
    yield one
    await close(one)


# Recipients.


async def test_what_is_kept_is_found_whole_by_everybody(open_process: Open) -> None:
    one, other = open_process(), open_process()
    assert await other.recipients.find("t", "anna") is None
    assert await one.recipients.keep("t", ANNA)
    assert await other.recipients.find("t", "anna") == ANNA
    assert await other.recipients.find("t2", "anna") is None


async def test_a_change_is_told_to_everybody_and_what_was_read_before_is_not_kept(open_process: Open) -> None:
    one, other = open_process(), open_process()
    heard: list[UserKey | None] = []
    other.recipients.listen(heard.append)
    await until(lambda: other.recipients.live)
    heard.clear()
    await one.recipients.keep("t", ANNA)
    await one.recipients.forget([("t", "anna"), ("t", "ben:|")], change="c1")
    await until(lambda: heard == [("t", "anna"), ("t", "ben:|")])
    assert await other.recipients.find("t", "anna") is None
    assert not await other.recipients.keep("t", ANNA), "it may be from before the change"
    assert await other.recipients.keep("t", User("carl"))
    assert await one.recipients.keep("t", ANNA, after="c1"), "it was read after that change"
    await other.recipients.forget([("t", "anna")], change="c2")
    assert not await one.recipients.keep("t", ANNA, after="c1"), "there was another change since"


async def test_a_change_of_many_forgets_everybody(open_process: Open) -> None:
    one, other = open_process(), open_process()
    heard: list[UserKey | None] = []
    other.recipients.listen(heard.append)
    await until(lambda: other.recipients.live)
    heard.clear()
    await one.recipients.keep("t", ANNA)
    await one.recipients.forget(None, change="c1")
    await until(lambda: heard == [None])
    assert await other.recipients.find("t", "anna") is None
    assert not await one.recipients.keep("t", ANNA)


# Idempotency.


async def test_a_key_is_remembered_with_its_first_request(open_process: Open) -> None:
    one, other = open_process(), open_process()
    first = Remembered("i-1", b"hash", "accepted", ("ledger", "queue"), 12.5)
    await one.idempotency.remember([first, Remembered("i-2", b"h2", "scheduled", ("queue",), 13.0)])
    await other.idempotency.remember([Remembered("i-1", b"another", "accepted", ("queue",), 14.0)])
    found = await other.idempotency.find(["i-1", "i-3"])
    assert found == {"i-1": first}
    assert await one.idempotency.find([]) == {}


# Flags.


async def test_a_switch_is_seen_and_told(open_process: Open) -> None:
    one, other = open_process(), open_process()
    told: list[bool] = []
    other.flags.listen(lambda: told.append(True))
    await until(lambda: other.recipients.live)
    told.clear()
    await one.flags.write("sms_fallback", True)
    await one.flags.write("email_fallback", False)
    await until(lambda: len(told) == 2)
    assert await other.flags.read() == {"sms_fallback": True, "email_fallback": False}
    await other.flags.write("sms_fallback", None)
    assert await one.flags.read() == {"email_fallback": False}


# Modes.


async def test_modes_are_announced_for_a_while(open_process: Open) -> None:
    one, other = open_process(), open_process()
    await one.announcements.announce("w-1", ["fcm_fallback", "hold_ios"], life_s=30.0)
    await one.announcements.announce("w-2", [], life_s=0.2)
    await other.announcements.announce("w-3", ["read_only"], life_s=30.0)
    found = await other.announcements.announced()
    assert found["w-1"] == ("fcm_fallback", "hold_ios")
    assert found["w-3"] == ("read_only",)

    async def forgotten() -> bool:
        return "w-2" not in await other.announcements.announced()

    await until(forgotten)
    await one.announcements.announce("w-1", [], life_s=30.0)
    await other.announcements.withdraw("w-3")
    assert await one.announcements.announced() == {"w-1": ()}


# Rates.


async def test_places_are_given_out_at_the_rate_over_all(open_process: Open) -> None:
    one, other = open_process(), open_process()
    waits = [
        await process.limits.reserve("fcm", rate_per_s=0.5, burst=2, wait_s_max=9.0) for process in (one, other) * 4
    ]
    # Two at once, then one every two seconds, less what the asking took.
    assert waits[:2] == [0.0, 0.0]
    for wait, expected in zip(waits[2:6], (2.0, 4.0, 6.0, 8.0), strict=True):
        assert wait is not None
        assert 0.5 < wait <= expected
    assert waits[6:] == [None, None], "the next would wait too long, and nothing is taken"
    assert await other.limits.reserve("apns", rate_per_s=0.5, burst=1, wait_s_max=0.0) == 0.0


# Locks.


async def test_one_has_the_lock_and_each_new_holder_a_higher_fence(open_process: Open) -> None:
    one, other = open_process(), open_process()
    first = await one.locks.acquire("replay", "w-1", lease_s=30.0)
    assert await other.locks.acquire("replay", "w-2", lease_s=30.0) is None
    assert await one.locks.acquire("replay", "w-1", lease_s=30.0) is None
    assert await one.locks.acquire("scale", "w-1", lease_s=30.0) is not None
    assert await one.locks.renew(first, lease_s=0.2)
    second: Any = None

    async def acquired() -> bool:
        nonlocal second
        second = await other.locks.acquire("replay", "w-2", lease_s=30.0)
        return second is not None

    await until(acquired)
    assert second.fence > first.fence
    assert not await one.locks.renew(first, lease_s=30.0), "it ran out"
    assert not await one.locks.release(first), "it is another's"
    assert await other.locks.renew(second, lease_s=30.0)
    assert await other.locks.release(second)
    assert not await other.locks.release(second)
    third = await one.locks.acquire("replay", "w-1", lease_s=30.0)
    assert third is not None
    assert third.fence > second.fence


async def test_many_who_want_the_lock_at_once(open_process: Open) -> None:
    processes = [open_process() for _ in range(4)]
    got = await asyncio.gather(*(p.locks.acquire("x", f"w-{n}", lease_s=30.0) for n, p in enumerate(processes * 5)))
    assert len([one for one in got if one is not None]) == 1


# Circuits.


async def test_a_circuit_is_written_over_the_version_that_was_read(open_process: Open) -> None:
    one, other = open_process(), open_process()
    before = await one.circuits.read("fcm")
    assert (before.state, before.open_s, before.version) == ("closed", 0.0, 0)
    assert await one.circuits.publish("fcm", "open", 30.0, 0)
    assert not await other.circuits.publish("fcm", "closed", 0.0, 0), "somebody has written since"
    found = await other.circuits.read("fcm")
    assert (found.state, found.version) == ("open", 1)
    assert 20.0 < found.open_s <= 30.0
    assert await other.circuits.publish("fcm", "closed", 0.0, 1)
    assert (await one.circuits.read("fcm")).version == 2


async def test_leave_to_probe_has_an_owner_and_an_end(open_process: Open) -> None:
    one, other = open_process(), open_process()
    assert await one.circuits.lease_probe("fcm", "w-1", 30.0)
    assert not await other.circuits.lease_probe("fcm", "w-2", 30.0)
    await other.circuits.release_probe("fcm", "w-2")
    assert not await other.circuits.lease_probe("fcm", "w-2", 30.0)
    assert await one.circuits.lease_probe("fcm", "w-1", 0.2)

    async def ended() -> bool:
        return bool(await other.circuits.lease_probe("fcm", "w-2", 30.0))

    await until(ended)
    await other.circuits.release_probe("fcm", "w-2")
    assert await one.circuits.lease_probe("fcm", "w-1", 30.0)


# What only a server can do.


async def test_what_nobody_can_read_is_not_known(linked: Linked, redis_server: RedisServer) -> None:
    await linked.recipients.keep("t", ANNA)
    await linked.idempotency.remember([Remembered("i", b"h", "accepted", ("queue",), 1.0)])
    with redis_server.client() as client:
        client.set("bellbuoy:user:1:t:anna", b"0|\xc1")
        client.set("bellbuoy:accepted:i", b"\xc1")
    assert await linked.recipients.find("t", "anna") is None
    assert await linked.idempotency.find(["i"]) == {}


async def test_keys_of_another_kind_are_an_absence(linked: Linked, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.rpush("bellbuoy:flags", "x")
        client.rpush("bellbuoy:circuit:fcm", "x")
    for asked in (linked.flags.read(), linked.circuits.read("fcm")):
        with pytest.raises(Unavailable):
            await asked


async def test_fences_grow_although_the_server_has_lost_everything(linked: Linked, redis_server: RedisServer) -> None:
    first = await linked.locks.acquire("x", "w-1", lease_s=30.0)
    redis_server.lose_everything()
    second = await linked.locks.acquire("x", "w-2", lease_s=30.0)
    assert first is not None
    assert second is not None
    assert second.fence > first.fence
    assert not await linked.locks.renew(first, lease_s=30.0)


async def test_what_was_confirmed_survives_a_kill(linked: Linked, redis_server: RedisServer) -> None:
    await linked.idempotency.remember([Remembered("i", b"h", "accepted", ("queue",), 1.0)])
    await linked.flags.write("f", True)
    redis_server.kill()
    with pytest.raises(Unavailable):
        await linked.idempotency.find(["i"])
    await until(lambda: not linked.link.live)
    redis_server.start()
    await until(lambda: linked.link.live)
    assert "i" in await linked.idempotency.find(["i"])
    assert await linked.flags.read() == {"f": True}


async def test_it_ends_although_the_driver_has_lost_its_cancellation(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    class Losing(PubSub):
        async def get_message(self, *args: Any, **kwargs: Any) -> Any:
            asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                return await super().get_message(*args, **kwargs)

    monkeypatch.setattr(Redis, "pubsub", lambda redis, **kwargs: Losing(redis.connection_pool, **kwargs))
    listening = asyncio.create_task(linked.link.run())
    await asyncio.wait_for(asked.wait(), timeout=10)
    listening.cancel()
    await asyncio.wait((listening,), timeout=10)
    assert listening.cancelled()


async def test_a_restart_costs_nobody_an_answer(linked: Linked, redis_server: RedisServer) -> None:
    async def ask_all() -> None:
        await asyncio.gather(*(linked.flags.write(f"f-{n}", True) for n in range(100)))

    await ask_all()  # Over as many connections as there may be.
    redis_server.kill()
    redis_server.start()
    await ask_all()


async def test_a_listener_that_missed_something_is_told(linked: Linked, redis_server: RedisServer) -> None:
    heard: list[UserKey | None] = []
    linked.recipients.listen(heard.append)
    await until(lambda: linked.recipients.live)
    heard.clear()
    redis_server.kill()
    await until(lambda: heard == [None])
    redis_server.start()
    await until(lambda: linked.recipients.live)
    assert heard.count(None) >= 2


async def test_a_frozen_server_is_not_waited_for_and_not_believed_to_be_heard(
    linked: Linked, redis_server: RedisServer
) -> None:
    redis_server.freeze()
    try:
        async with asyncio.timeout(10):
            with pytest.raises((Unavailable, TimeoutError)):
                await linked.flags.read()
        await until(lambda: not linked.recipients.live)
    finally:
        redis_server.thaw()
    await until(lambda: linked.recipients.live)
    assert await linked.flags.read() == {}


async def test_a_server_without_room_says_so_and_still_answers(linked: Linked, redis_server: RedisServer) -> None:
    await linked.flags.write("f", True)
    redis_server.refuse_writes(True)
    try:
        for write in (
            linked.flags.write("g", True),
            linked.recipients.keep("t", ANNA),
            linked.locks.acquire("x", "w", lease_s=1.0),
            linked.limits.reserve("fcm", rate_per_s=1.0, burst=1, wait_s_max=1.0),
            linked.idempotency.remember([Remembered("i", b"h", "accepted", ("queue",), 1.0)]),
            linked.link.probe(),
        ):
            with pytest.raises(Full):
                await write
        assert await linked.flags.read() == {"f": True}
        heard: list[UserKey | None] = []
        linked.recipients.listen(heard.append)
        await until(lambda: linked.recipients.live)
        heard.clear()
        await linked.recipients.forget([("t", "anna")], change="c1")
        await until(lambda: heard == [("t", "anna")])
    finally:
        redis_server.refuse_writes(False)
    await linked.link.probe()


async def test_one_who_gives_up_asking_takes_nothing_along(linked: Linked) -> None:
    for n in range(50):
        asking = asyncio.create_task(linked.flags.write(f"f-{n}", True))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def written() -> bool:
        return len(await linked.flags.read()) == 50

    await until(written)


async def test_a_url_that_is_none_is_named_and_a_password_stands_in_no_error() -> None:
    with pytest.raises(ConfigurationError, match="cache"):
        Link("redis://127.0.0.1:port/x", clock=SystemClock(), rng=Random(1))
    link = Link("redis://:s3cret-password@127.0.0.1:1/0", clock=SystemClock(), rng=Random(1))
    with pytest.raises(Unavailable) as refused:
        await link.probe()
    assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"
    await link.aclose()
