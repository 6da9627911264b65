"""The MongoDB ledger is copied while it is written, comes back as it was at any of its changes, and misses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from bellbuoy.adapters.mongodb import MongoLedger, MongoPlace
from bellbuoy.clock import SystemClock
from bellbuoy.errors import Conflict, Damaged, Gap
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Receipt, Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient, User
from bellbuoy.ports.archive import Change
from bellbuoy.ports.ledger import Offer
from tests.fault.test_backup import Operator, settings
from tests.support.mongodb import REAL, MongoServer
from tests.support.rabbitmq import RabbitServer, free_port
from tests.support.redis import RedisServer
from tests.support.server import Server, to_android, to_email
from tests.support.stack import Stack

pytestmark = pytest.mark.fault
NOW = 1_800_000_000.0
State = dict[str, dict[Any, Any]]


def offer(name: str) -> Offer:
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title=name))
    return Offer(Record(name, "t", request, NOW, NOW + 1e6), b"", NOW)


@pytest.fixture
async def ledger(mongodb_url: str) -> AsyncIterator[MongoLedger]:
    opened = MongoLedger(mongodb_url, clock=SystemClock())
    yield opened
    await opened.aclose()


@pytest.fixture
async def place(mongodb_url: str) -> AsyncIterator[MongoPlace]:
    opened = MongoPlace(beside(mongodb_url), clock=SystemClock())
    yield opened
    await opened.discard()
    await opened.aclose()


def beside(url: str) -> str:
    base, question, options = url.partition("?")
    return f"{base}_restored{question}{options}"


def state(url: str) -> State:
    """Everything in a database but what is about the database itself."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        database = client.get_default_database()
        names = sorted(set(database.list_collection_names()) - {"meta"})
        return {name: {str(one["_id"]): one for one in database[name].find()} for name in names}


def same(one: State, other: State) -> None:
    for name in one.keys() | other.keys():
        assert one.get(name, {}) == other.get(name, {}), name


async def work(ledger: MongoLedger, prefix: str) -> None:
    """All kinds of writes: accepted, claimed, sent, cancelled, a user, a key's document, something forgotten."""
    await ledger.accept([offer(f"{prefix}-{n}") for n in range(20)])
    for claim in await ledger.claim("w", now=NOW, lease_s=60, limit=10):
        record = claim.record
        record.chain = ("email",)
        delivery = Delivery("d", 0, "email", "smtp", "a@example.com", due_at=NOW)
        record.deliveries.append(delivery)
        transitions.start(delivery, NOW)
        await ledger.save(record, claim.fence, now=NOW, due_at=None, held=(), release=False)
        transitions.delivered(record, delivery, Receipt(200), NOW, 1.0)
        await ledger.save(record, claim.fence, now=NOW, due_at=None, held=(), release=True)
    await ledger.cancel(f"{prefix}-19", "t", now=NOW)
    await ledger.put_users("t", [User(f"{prefix}-u", email="a@example.com")], now=NOW, keep_devices=[False])
    await ledger.control.write("flag", prefix, b"on", version=0)
    await ledger.control.delete("flag", prefix, version=1)


async def test_it_comes_back_as_it_was_at_each_of_its_changes(
    ledger: MongoLedger, place: MongoPlace, mongodb_url: str, tmp_path: Path
) -> None:
    await work(ledger, "before")
    writing = asyncio.create_task(work(ledger, "meanwhile"))
    (tmp_path / "copy").mkdir()
    snapshot = await ledger.source.full(tmp_path / "copy")
    await writing
    middle = await ledger.source.changes(snapshot.number, bytes_max=1_000_000)
    then = state(mongodb_url)
    await work(ledger, "after")
    found = await ledger.source.changes(middle.upto, bytes_max=1_000_000)
    assert (middle.after, found.after) == (snapshot.number, middle.upto)
    numbers = [one.number for one in (*middle.changes, *found.changes)]
    assert numbers == sorted(set(numbers))
    assert [one.at for one in found.changes] == sorted({one.at for one in found.changes})
    assert found.until >= found.changes[-1].at
    assert middle.until < found.changes[0].at, "nothing that came later is as early"

    await place.begin(tmp_path / "copy")
    await place.apply(middle.changes)
    same(state(place.url), then)
    await place.apply(found.changes)
    same(state(place.url), state(mongodb_url))
    await place.finish("another")
    restored = MongoLedger(place.url, clock=SystemClock())
    assert (await restored.books("t")).difference == 0
    assert await restored.source.position() is not None
    assert (await restored.source.position() or ("", 0))[0] == "another"
    await restored.aclose()
    with pytest.raises(Conflict):
        await place.begin(tmp_path / "copy")


async def test_changes_come_in_pieces_without_a_gap(ledger: MongoLedger, tmp_path: Path) -> None:
    snapshot = await ledger.source.full(tmp_path)
    await work(ledger, "a")
    whole = await ledger.source.changes(snapshot.number, bytes_max=10_000_000)
    pieces: list[Change] = []
    after, more = snapshot.number, True
    while more:
        found = await ledger.source.changes(after, bytes_max=5_000)
        assert found.after == after
        pieces += found.changes
        after, more = found.upto, found.more
    assert pieces == whole.changes
    assert (await ledger.source.changes(after, bytes_max=1)).changes == []


async def test_what_the_oplog_has_forgotten_is_a_gap(ledger: MongoLedger) -> None:
    await work(ledger, "a")
    with pytest.raises(Gap):
        await ledger.source.changes(1 << 32 | 1, bytes_max=1_000)
    timeline, number = await ledger.source.position() or ("", 0)
    with pytest.raises(Gap):
        await ledger.source.changes(number + (1 << 40), bytes_max=1_000)
    await ledger.source.renew()
    assert (await ledger.source.position() or ("", 0))[0] != timeline


@pytest.mark.skipif(REAL is not None, reason="it drops a collection")
async def test_a_collection_that_was_dropped_is_a_gap(ledger: MongoLedger, mongodb_url: str, tmp_path: Path) -> None:
    await work(ledger, "a")
    snapshot = await ledger.source.full(tmp_path)
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        client.get_default_database()["users"].drop()
    with pytest.raises(Gap):
        await ledger.source.changes(snapshot.number, bytes_max=1_000_000)


async def test_a_copy_or_a_change_that_does_not_fit_is_told(
    ledger: MongoLedger, place: MongoPlace, tmp_path: Path
) -> None:
    await work(ledger, "a")
    snapshot = await ledger.source.full(tmp_path)
    await work(ledger, "b")
    found = await ledger.source.changes(snapshot.number, bytes_max=1_000_000)
    await place.begin(tmp_path)
    with pytest.raises(Damaged):
        await place.apply(found.changes[len(found.changes) // 2 :])
    path = tmp_path / "notifications.bson"
    path.write_bytes(path.read_bytes()[:-3])
    other = MongoPlace(place.url, clock=SystemClock(), replace=True)
    with pytest.raises(Damaged):
        await other.begin(tmp_path)
    await other.aclose()


@pytest.mark.skipif(REAL is not None, reason="it drops databases of the service's own")
def test_a_cluster_comes_back_in_another_database_and_sends_nothing_twice(tmp_path: Path) -> None:
    mongodb, rabbitmq, redis = (
        MongoServer(tmp_path),
        RabbitServer(tmp_path / "rabbitmq"),
        RedisServer(tmp_path / "redis"),
    )
    (tmp_path / "mine").mkdir()
    backup = settings(tmp_path) | {"BELLBUOY_DELIVERY__LEASE_S": "20"}
    nodes: list[Server] = []
    stack = None
    try:
        stack = Stack(tmp_path / "mine", mongodb.start(), rabbitmq.start(), redis.start(), backup).start()
        sent = [stack.both.send(to_android(n)) for n in range(30)]
        for one in sent:
            stack.both.wait_status(one, "delivered")
        operator = Operator(tmp_path / "mine" / "operator", stack.wiring)
        full = operator.run("full", "--json")[0]
        assert full["bytes"] > 0
        stack.outside.fault("fcm", kind="outage")
        held = [stack.both.send(to_android(n)) for n in range(30, 40)]
        mailed = [stack.front.send(to_email(n)) for n in range(20)]
        for one in mailed:
            stack.front.wait_status(one, "delivered")
        assert operator.run("incremental", "--json")[0]["id"] is not None
        assert operator.run("verify", "--json")[0]["sound"]
        # After the last shipping: these are in the send journal only.
        for node in (stack.front, stack.both, stack.hand):
            node.kill()
        stack.outside.fault("fcm")
        before = len(stack.outside.received_all("smtp")), len(stack.outside.received_all("fcm"))
        mongodb_of = pymongo.MongoClient[dict[str, Any]](mongodb.uri("bellbuoy"))
        report = operator.run("restore", "--to-database", "bellbuoy_again", "--json")[0]
        assert report["where"] == "the database bellbuoy_again"
        assert report["checked"]["books"]["accepted"] == 60
        assert operator.run("restore", "--to-database", "bellbuoy_again", status=1)[1].count("--force") == 1
        mongodb_of.drop_database("bellbuoy")
        mongodb_of.close()
        wiring = {name: value.replace("/bellbuoy?", "/bellbuoy_again?") for name, value in stack.wiring.items()}
        wiring["BELLBUOY_QUEUE__URL"] = f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/{rabbitmq.make_vhost()}"
        nodes = [Server(tmp_path / "fresh", wiring, ("serve", "--port", str(free_port())))]
        nodes[0].start()
        for one in (*sent, *mailed, *held):
            nodes[0].wait_status(one, "delivered", within_s=90)
        assert nodes[0].books()["difference"] == 0
        after = len(stack.outside.received_all("smtp")), len(stack.outside.received_all("fcm"))
        assert after == (before[0], before[1] + len(held)), "what was sent is not sent again"
    finally:
        for node in nodes:
            if node.process is not None:
                node.kill()
        if stack is not None:
            stack.close()
        mongodb.kill()
        rabbitmq.stop()
        redis.kill()
