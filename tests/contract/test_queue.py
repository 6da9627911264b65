"""One suite for every queue: what `bellbuoy.ports.queue` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import aio_pika
import pytest

from bellbuoy.adapters.memory_queue import MemoryQueue
from bellbuoy.adapters.rabbitmq import RabbitQueue
from bellbuoy.adapters.rabbitmq.link import CALL_S
from bellbuoy.adapters.rabbitmq.topology import PREFIX
from bellbuoy.clock import SystemClock
from bellbuoy.errors import ConfigurationError, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.queue import Handed, Lane, Message, Queue
from tests.support.rabbitmq import RabbitServer, free_port

NOW = 1_800_000_000.0
WORK: tuple[Lane, ...] = ("high", "normal", "low")

Open = Callable[[], Any]


def message(name: str, *, body: str = "b") -> Message:
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t", body=body))
    return Message(Record(name, "t", request, NOW, NOW + 100), b"hash", fence=3)


@pytest.fixture(params=["memory", "rabbitmq"])
async def open_queue(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens the same queue as often as a test wants, as processes would."""
    opened: list[Any] = []
    url = request.getfixturevalue("amqp_url") if request.param == "rabbitmq" else None
    shared = MemoryQueue(clock=SystemClock())

    def make() -> Any:
        queue = shared if url is None else RabbitQueue(url, prefetch=50, clock=SystemClock(), rng=Random(1))
        opened.append(queue)
        return queue

    yield make
    for queue in opened:
        await queue.aclose()


@pytest.fixture
def queue(open_queue: Open) -> Queue:
    made: Queue = open_queue()
    return made


async def take(queue: Queue, count: int, lanes: tuple[Lane, ...] = WORK) -> list[Handed]:
    """Take until there are so many."""
    found: list[Handed] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await queue.take(lanes, limit=count - len(found), wait_s=1.0)
    return found


def names(handed: list[Handed]) -> list[str]:
    return [one.message.record.id for one in handed]


async def nothing(queue: Queue) -> None:
    assert await queue.take(WORK, limit=10, wait_s=0.2) == []


async def test_what_is_put_in_comes_out_whole(queue: Queue) -> None:
    await queue.put("normal", [message("a", body="x" * 70_000)])
    (one,) = await take(queue, 1)
    assert one.message == message("a", body="x" * 70_000)
    assert (one.lane, one.times) == ("normal", 0)
    await queue.acknowledge([one])
    await nothing(queue)


async def test_the_first_lane_comes_first_and_the_last_is_not_starved(queue: Queue) -> None:
    for lane in ("low", "normal", "high"):
        await queue.put(lane, [message(f"{lane}-{n}") for n in range(20)])
    seen: list[Handed] = []
    while len(seen) < 60:
        await asyncio.sleep(0.02)  # A broker hands out in advance; what counts is the order of what is here.
        got = await queue.take(WORK, limit=2, wait_s=1.0)
        await queue.acknowledge(got)
        seen += got
    lanes = [one.lane for one in seen]
    assert lanes.index("high") < lanes.index("normal")
    assert "low" in lanes[:30], "the lowest has its turn before all others are done"
    assert sorted(names(seen)) == sorted(f"{lane}-{n}" for lane in WORK for n in range(20))


async def test_a_delayed_message_comes_later(queue: Queue) -> None:
    await queue.put("normal", [message("later")], delay_s=0.5)
    await queue.put("normal", [message("now")])
    assert names(await take(queue, 1)) == ["now"]
    assert (await queue.depth())["normal"] >= 1
    assert names(await take(queue, 1)) == ["later"]


async def test_what_is_given_back_comes_again_and_says_so(queue: Queue) -> None:
    await queue.put("high", [message("a")])
    (one,) = await take(queue, 1)
    await queue.give_back([one])
    (again,) = await take(queue, 1)
    assert again.times >= 1


async def test_what_is_given_back_too_often_goes_to_the_dead(queue: Queue) -> None:
    await queue.put("normal", [message("poison"), message("good")])
    poisoned = 0
    async with asyncio.timeout(30):
        while not (dead := await queue.dead(limit=10)):
            for one in await queue.take(WORK, limit=10, wait_s=0.2):
                if one.message.record.id == "poison":
                    poisoned += 1
                    await queue.give_back([one])
                else:
                    await queue.acknowledge([one])
    assert names(dead) == ["poison"]
    assert 10 <= poisoned <= 30
    await queue.acknowledge(dead)
    assert (await queue.depth())["dead"] == 0


async def test_outcomes_wait_for_who_asks_for_them(queue: Queue) -> None:
    await queue.put("outcomes", [message(f"o{n}") for n in range(5)])
    await nothing(queue)
    assert (await queue.depth())["outcomes"] == 5
    got = await take(queue, 5, ("outcomes",))
    await queue.acknowledge(got)
    assert (await queue.depth())["outcomes"] == 0


async def test_two_processes_share_without_having_the_same(open_queue: Open) -> None:
    here, there = open_queue(), open_queue()
    await here.put("normal", [message(str(n)) for n in range(200)])
    seen: list[str] = []

    async def work(queue: Queue) -> None:
        while len(seen) < 200:
            got = await queue.take(WORK, limit=10, wait_s=0.2)
            seen.extend(names(got))
            await queue.acknowledge(got)

    async with asyncio.timeout(30):
        await asyncio.gather(work(here), work(there))
    assert sorted(seen, key=int) == [str(n) for n in range(200)]


async def test_many_put_at_once(queue: Queue) -> None:
    await asyncio.gather(*(queue.put("normal", [message(f"{n}")]) for n in range(200)))
    seen: list[str] = []
    while len(seen) < 200:
        got = await take(queue, 1)
        seen += names(got)
        await queue.acknowledge(got)
    assert sorted(seen, key=int) == [str(n) for n in range(200)]


async def test_what_was_out_comes_again_when_its_process_ends(open_queue: Open) -> None:
    first = open_queue()
    await first.put("normal", [message("a")])
    await take(first, 1)
    await first.aclose()
    second = open_queue()
    (again,) = await take(second, 1)
    assert again.times >= 1


async def test_one_who_gives_up_waiting_takes_nothing_along(queue: Queue) -> None:
    waiting = asyncio.create_task(queue.take(WORK, limit=1, wait_s=30))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await queue.put("normal", [message("a")])
    assert names(await take(queue, 1)) == ["a"]


async def test_it_says_that_it_is_well(queue: Queue) -> None:
    await queue.probe()
    assert set((await queue.depth()).values()) == {0}


# What only a broker can do to us.


async def test_what_a_broker_confirmed_is_there_after_a_kill(rabbitmq: RabbitServer, amqp_url: str) -> None:
    queue = RabbitQueue(amqp_url, prefetch=50, clock=SystemClock(), rng=Random(1))
    await queue.put("normal", [message(str(n)) for n in range(50)])
    held = await take(queue, 10)
    rabbitmq.kill()
    with pytest.raises(Unavailable):
        await queue.put("normal", [message("lost")])
    rabbitmq.start()
    async with asyncio.timeout(30):
        while True:
            try:
                await queue.probe()
                break
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s or 0.1)
    await queue.acknowledge(held)  # Over a connection that is gone: they come again.
    got = await take(queue, 50)
    assert {*names(got)} == {str(n) for n in range(50)}
    await queue.aclose()


async def test_one_who_only_takes_hears_of_a_restart(rabbitmq: RabbitServer, amqp_url: str) -> None:
    queue = RabbitQueue(amqp_url, prefetch=50, clock=SystemClock(), rng=Random(1))
    await queue.put("normal", [message("a")])
    await take(queue, 1)
    waiting = asyncio.create_task(queue.take(WORK, limit=1, wait_s=60))
    rabbitmq.kill()
    rabbitmq.start()
    async with asyncio.timeout(30):
        got = await waiting  # It is woken, not left to wait for a connection that is gone.
        while not got:
            try:
                got = await queue.take(WORK, limit=1, wait_s=1.0)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s or 0.1)
    assert (names(got), got[0].times >= 1) == (["a"], True)
    await queue.aclose()


async def test_one_who_gives_up_asking_takes_nothing_along(amqp_url: str) -> None:
    queue = RabbitQueue(amqp_url, prefetch=50, clock=SystemClock(), rng=Random(1))
    await queue.put("outcomes", [message(str(n)) for n in range(50)])
    for _ in range(10):
        asking = asyncio.create_task(queue.take(("outcomes",), limit=50, wait_s=0.0))
        await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert {*names(await take(queue, 50, ("outcomes",)))} == {str(n) for n in range(50)}
    await queue.aclose()


async def test_a_frozen_broker_is_not_waited_for(rabbitmq: RabbitServer, amqp_url: str) -> None:
    queue = RabbitQueue(amqp_url, prefetch=50, clock=SystemClock(), rng=Random(1))
    await queue.probe()
    rabbitmq.freeze()
    try:
        async with asyncio.timeout(8):
            with pytest.raises(Unavailable):
                await queue.put("normal", [message("a")])
    finally:
        rabbitmq.thaw()
    async with asyncio.timeout(30):
        while True:
            try:
                await queue.put("normal", [message("b")])
                break
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s or 0.1)
    assert "b" in names(await take(queue, 1)) + names(await queue.take(WORK, limit=5, wait_s=0.5))
    await queue.aclose()


async def test_whoever_asks_as_a_connection_is_given_up_is_told_so_and_not_cancelled(
    rabbitmq: RabbitServer, amqp_url: str
) -> None:
    queue = RabbitQueue(amqp_url, prefetch=50, clock=SystemClock(), rng=Random(1))
    await queue.probe()
    rabbitmq.freeze()
    try:
        early = asyncio.ensure_future(queue.put("normal", [message("a")]))
        await asyncio.sleep(CALL_S / 2)  # It will have waited too long first, and gives the connection up for all.
        late = (queue.put("normal", [message("b")]), queue.probe(), queue.depth(), queue.take(WORK, limit=1, wait_s=0))
        async with asyncio.timeout(20):
            told = await asyncio.gather(early, *late, return_exceptions=True)
        assert [type(one) for one in told] == [Unavailable] * 5
    finally:
        rabbitmq.thaw()
    await queue.aclose()


async def test_a_queue_that_is_not_as_it_must_be_is_named(amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).declare_queue(f"{PREFIX}high", durable=True)
    queue = RabbitQueue(amqp_url, prefetch=0, clock=SystemClock(), rng=Random(1))
    with pytest.raises(ConfigurationError, match=r"bellbuoy\.high") as refused:
        await queue.put("high", [message("a")])
    assert refused.value.hint
    await queue.aclose()


async def test_a_password_stands_in_no_error(rabbitmq: RabbitServer) -> None:
    url = f"amqp://guest:s3cret-password@127.0.0.1:{rabbitmq.port}/"
    queue = RabbitQueue(url, prefetch=0, clock=SystemClock(), rng=Random(1))
    with pytest.raises((Unavailable, ConfigurationError)) as refused:
        await queue.probe()
    assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"
    await queue.aclose()


async def test_it_is_as_before_after_a_reconnection(queue: Queue) -> None:
    await queue.put("normal", [message("a")])
    await queue.reconnect()
    await queue.probe()
    (handed,) = await queue.take(["normal"], limit=5, wait_s=5.0)
    assert handed.message.record.id == "a"
    await queue.acknowledge([handed])


async def test_a_node_that_is_away_is_passed_over(rabbitmq: RabbitServer, amqp_url: str) -> None:
    here = f"127.0.0.1:{rabbitmq.port}"
    queue = RabbitQueue(
        amqp_url.replace(here, f"127.0.0.1:{free_port()},{here},127.0.0.1:{free_port()}"),
        prefetch=10,
        clock=SystemClock(),
        rng=Random(1),
    )
    await queue.put("normal", [message("a")])
    assert names(await take(queue, 1)) == ["a"]
    await queue.aclose()
