"""A memory of used keys that nodes share: it spares a second delivery, and costs nothing when it is not there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.journal import FileJournal
from bellbuoy.adapters.memory_queue import MemoryQueue
from bellbuoy.adapters.memory_shared import MemoryIdempotency
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Full, NotFound, StoreError, Unavailable
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.intake.recall import ASK_S, WAITING_MAX, Recall
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.ledger import Offer, Taken
from bellbuoy.ports.shared import Remembered
from tests.support.cluster import AWAY, Breakable
from tests.support.flow import RecordingTelemetry


class Memory(MemoryIdempotency):
    """Fails or hangs when it is told to."""

    failure: StoreError | None = None
    gate: asyncio.Event | None = None

    async def find(self, ids: Sequence[str]) -> Mapping[str, Remembered]:
        await self._pass()
        return await super().find(ids)

    async def remember(self, accepted: Sequence[Remembered]) -> None:
        await self._pass()
        await super().remember(accepted)

    async def _pass(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure


class Nodes:
    """Two nodes with one ledger, one queue and one memory."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.memory = Memory(clock=self.clock)
        self.broker = MemoryQueue(clock=self.clock)
        self.ledger = Breakable(SqliteLedger(path / "ledger.db", clock=self.clock, inline=True))
        self.a, self.b = (
            Homes(
                self.ledger,
                Kept(FileJournal(path / name), clock=self.clock),
                queue=self.broker,
                recall=Recall(self.memory, clock=self.clock),
                settings=HomesSettings(),
                clock=self.clock,
                telemetry=RecordingTelemetry(),
            )
            for name in "ab"
        )

    async def accept(self, node: Homes, *offers: Offer) -> list[Taken]:
        accepting = asyncio.create_task(node.accept(offers))
        for _ in range(100):
            await asyncio.sleep(0)
        for _ in range(20):
            if accepting.done():
                break
            await self.clock.advance(ASK_S / 10)
        return await accepting

    async def put(self) -> int:
        return (await self.broker.depth())["normal"]


def offer(name: str = "i-1", body: bytes = b"h", at: float = 1_800_000_000.0) -> Offer:
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t"))
    return Offer(Record(name, "t", request, at, at + 60), body, at)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def test_a_repeat_on_another_node_is_not_put_in_the_queue_again(nodes: Nodes) -> None:
    nodes.ledger.failure = AWAY
    (first,) = await nodes.accept(nodes.a, offer())
    assert (first.kind, first.record.homes) == ("new", ("queue",))
    again, fresh = await nodes.accept(nodes.b, offer(at=1_800_000_009.0), offer("i-2"))
    assert (again.kind, again.record.accepted_at, fresh.kind) == ("same", 1_800_000_000.0, "new")
    assert (await nodes.b.get("i-1")).id == "i-1", "it is found where it was answered for"
    (other,) = await nodes.accept(nodes.b, offer(body=b"another"))
    assert other.kind == "other"
    assert await nodes.put() == 2


async def test_what_the_ledger_confirmed_is_known_when_it_is_away(nodes: Nodes) -> None:
    assert [one.kind for one in await nodes.accept(nodes.a, offer(), offer("i-2", b""))] == ["new", "new"]
    await nodes.clock.advance(0.0)
    nodes.ledger.failure = AWAY
    kinds = [one.kind for one in await nodes.accept(nodes.b, offer(), offer("i-2", b""))]
    assert kinds == ["same", "new"], "without a key there is nothing to remember"


async def test_nothing_is_remembered_that_no_home_has(nodes: Nodes) -> None:
    nodes.ledger.failure = AWAY
    nodes.broker._room = 0
    (kept,) = await nodes.accept(nodes.a, offer())
    assert kept.record.homes == ("journal",)
    assert await nodes.memory.find(["i-1"]) == {}


@pytest.mark.parametrize("failure", [Unavailable("away"), Full("no room")])
async def test_without_the_memory_all_is_as_it_was(nodes: Nodes, failure: StoreError) -> None:
    nodes.memory.failure = failure
    assert [one.kind for one in await nodes.accept(nodes.a, offer())] == ["new"]
    await nodes.clock.advance(0.0)
    nodes.ledger.failure = AWAY
    assert [one.kind for one in await nodes.accept(nodes.b, offer())] == ["new"]
    assert await nodes.put() == 2


async def test_a_memory_that_hangs_is_not_waited_for(nodes: Nodes) -> None:
    nodes.memory.gate = asyncio.Event()
    nodes.ledger.failure = AWAY
    began = nodes.clock.monotonic()
    assert [one.kind for one in await nodes.accept(nodes.a, offer())] == ["new"]
    assert nodes.clock.monotonic() - began <= 2.2 * ASK_S
    nodes.ledger.failure = None
    began = nodes.clock.monotonic()
    assert [one.kind for one in await nodes.accept(nodes.b, offer("i-2"))] == ["new"]
    assert nodes.clock.monotonic() == began, "with the ledger there it is not waited for at all"


async def test_what_waits_to_be_told_is_bounded() -> None:
    clock = ManualClock()
    memory = Memory(clock=clock)
    memory.gate = asyncio.Event()
    recall = Recall(memory, clock=clock)
    one: Any = offer()
    recall.tell_soon([one] * 3 * WAITING_MAX, [Taken("new", one.record)] * 3 * WAITING_MAX)
    assert len(recall._waiting) == WAITING_MAX
    memory.gate.set()
    await recall.aclose()
    assert "i-1" in await memory.find(["i-1"])


async def test_it_says_whether_a_key_may_have_been_used_and_not_that_it_was_not_when_it_cannot_know() -> None:
    clock = ManualClock()
    memory = Memory(clock=clock)
    recall = Recall(memory, clock=clock)
    assert not await recall.may_know("a")
    await memory.remember([Remembered("a", b"h", "accepted", ("queue",), clock.time())])
    assert await recall.may_know("a")
    memory.failure = AWAY
    assert await recall.may_know("b")
    memory.gate = asyncio.Event()
    asking = asyncio.create_task(recall.may_know("b"))
    await clock.advance(ASK_S)
    assert await asking


async def test_what_the_memory_knows_and_the_ledger_does_not_yet_is_not_said_not_to_be_there(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.memory.remember([Remembered(KEYED, b"h", "accepted", ("queue",), nodes.clock.time())])
    for known, wanted in ((KEYED, Unavailable), (UNKNOWN, NotFound)):
        asking = asyncio.create_task(nodes.b.get(known, "default"))
        for _ in range(10):
            await nodes.clock.advance(0.2)
        with pytest.raises(wanted):
            await asking
    for node in (nodes.a, nodes.b):
        await node.aclose()


KEYED, UNKNOWN = (str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ("k", "u"))
