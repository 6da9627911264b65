"""What is copied of Redis and of the broker comes back, and the copy leaves both as they were."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bellbuoy.adapters.rabbitmq import RabbitPlace, RabbitQueue, RabbitSource
from bellbuoy.adapters.rabbitmq.backup import COPIED_MAX
from bellbuoy.adapters.redis import Link, RedisPlace, RedisSource
from bellbuoy.clock import SystemClock
from bellbuoy.errors import Conflict, Damaged
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.queue import Handed, Message
from tests.contract.test_shared import until
from tests.support.redis import RedisServer

NOW = 1_800_000_000.0


def message(name: str) -> Message:
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title=name))
    return Message(Record(name, "t", request, NOW, NOW + 100), b"hash", fence=3)


async def test_what_waits_at_the_broker_is_copied_and_still_waits(amqp_url: str, tmp_path: Path) -> None:
    clock = SystemClock()
    queue = RabbitQueue(amqp_url, prefetch=50, clock=clock, rng=Random(1))
    source = RabbitSource(amqp_url, clock=clock, rng=Random(2))
    await queue.put("high", [message(f"h-{n}") for n in range(20)])
    await queue.put("low", [message("late")], delay_s=900)
    await queue.put("outcomes", [message("done")])
    snapshot = await source.full(tmp_path)
    assert sorted(snapshot.files) == ["definitions.json", "messages.msgpack"]
    place = RabbitPlace()
    await place.begin(tmp_path)
    assert sorted(one.record.id for one in place.messages) == sorted([f"h-{n}" for n in range(20)] + ["late"])
    assert [one.record.id for one in place.outcomes] == ["done"]
    expected = {"high": 20, "normal": 0, "low": 1, "outcomes": 1, "dead": 0}

    async def given_back() -> bool:
        return await queue.depth() == expected

    await until(given_back)  # The broker confirms nothing of what is given back to it.
    handed: list[Handed] = []
    async with asyncio.timeout(20):
        while len(handed) < 20:
            handed += await queue.take(("high",), limit=20 - len(handed), wait_s=5.0)
    assert [one.message.record.id for one in handed] == [f"h-{n}" for n in range(20)], "in their order"
    await queue.acknowledge(handed)
    await source.aclose()
    await queue.aclose()


async def test_of_a_long_queue_some_are_copied_and_the_rest_are_counted(amqp_url: str, tmp_path: Path) -> None:
    clock = SystemClock()
    queue = RabbitQueue(amqp_url, prefetch=0, clock=clock, rng=Random(1))
    source = RabbitSource(amqp_url, clock=clock, rng=Random(2))
    await queue.put("normal", [message(f"n-{n}") for n in range(COPIED_MAX + 200)])
    await source.full(tmp_path)
    place = RabbitPlace()
    await place.begin(tmp_path)
    assert 0 < len(place.messages) <= COPIED_MAX
    assert (await queue.depth())["normal"] == COPIED_MAX + 200
    await source.aclose()
    await queue.aclose()


async def test_the_definitions_are_those_that_are_declared(amqp_url: str, tmp_path: Path) -> None:
    source = RabbitSource(amqp_url, clock=SystemClock(), rng=Random(2))
    await source.full(tmp_path)
    await source.aclose()
    found: dict[str, Any] = json.loads((tmp_path / "definitions.json").read_text())
    lanes = {one["name"]: one["arguments"] for one in found["queues"]}
    assert lanes["bellbuoy.high"]["x-queue-type"] == "quorum"
    assert {one["destination"] for one in found["bindings"]} <= lanes.keys()
    (tmp_path / "messages.msgpack").write_bytes(b"\xc1")
    with pytest.raises(Damaged):
        await RabbitPlace().begin(tmp_path)


async def test_redis_comes_back_key_by_key(redis_server: RedisServer, tmp_path: Path) -> None:
    assert RedisSource.often
    assert not RabbitSource.often, "each look at a message is one of the few times that it is handed out"
    redis_server.lose_everything()
    clock = SystemClock()
    link = Link(redis_server.uri(), clock=clock, rng=Random(1))
    with redis_server.client() as client:
        client.set("bellbuoy:forever", "1")
        client.hset("bellbuoy:hash", mapping={"a": "1", "b": "2"})
        client.set("bellbuoy:soon", "x", px=600_000)
        client.set("other", "not ours")
        client.mset({f"bellbuoy:many:{n}": n for n in range(1_500)})
        saves = client.info("persistence")["rdb_saves"]
        assert (await RedisSource(link, clock=clock).full(tmp_path)).files == ["keys.msgpack"]
        assert client.info("persistence")["rdb_saves"] > saves, "its own snapshot too"
        with pytest.raises(Conflict):
            await RedisPlace(link).begin(tmp_path)
        redis_server.lose_everything()
    with redis_server.client() as client:
        await RedisPlace(link).begin(tmp_path)
        assert client.hgetall("bellbuoy:hash") == {b"a": b"1", b"b": b"2"}
        assert client.get("bellbuoy:many:1499") == b"1499"
        assert client.ttl("bellbuoy:forever") == -1
        assert 500_000 < client.pttl("bellbuoy:soon") <= 600_000
        assert client.get("other") is None
        await RedisPlace(link, replace=True).begin(tmp_path)
    (tmp_path / "keys.msgpack").write_bytes(b"\x05\x00\x00\x00\xc1abc")
    with pytest.raises(Damaged):
        await RedisPlace(link, replace=True).begin(tmp_path)
    await link.aclose()
