"""A ledger in MongoDB whose server is killed, frozen or full, and whose workers overlap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pymongo
import pytest

from bellbuoy.adapters.mongodb import MongoLedger
from bellbuoy.adapters.mongodb.database import CALL_S, Database
from bellbuoy.clock import ManualClock, SystemClock
from bellbuoy.errors import Busy, ConfigurationError, Full, LeaseLost, NotFound, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Request
from bellbuoy.ports.ledger import Offer
from bellbuoy.service.drills.proxy import Proxy
from tests.support.mongodb import REAL, MongoServer
from tests.support.server import Server, to_email, wait_for

pytestmark = pytest.mark.fault
own_server = pytest.mark.skipif(REAL is not None, reason="it kills or freezes the server, or sets its fail points")

NOW = 1_800_000_000.0
REQUEST = msgspec.convert({"recipient": {"user_id": "u"}, "content": {"title": "t"}}, Request)
KILLS = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MongoServer]:
    """A server of this test's own."""
    running = MongoServer(tmp_path)
    try:
        yield running.start()
    finally:
        running.kill()


def offer(notification_id: str, *, owner: str | None = None) -> Offer:
    return Offer(Record(notification_id, "t", REQUEST, NOW, NOW + 1e6), b"h", NOW + 30 if owner else NOW, owner)


async def test_a_call_that_cannot_be_cut_off_is_left_behind(mongodb_url: str) -> None:
    database = Database(mongodb_url, clock=SystemClock())
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    async def name() -> str:
        return database.database.name

    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await database.run(stubborn, within_s=0.05)
        assert await database.run(name)
        asking = asyncio.create_task(database.run(stubborn))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    over.set()
    await database.aclose()


def a_ledger(url: str) -> MongoLedger:
    return MongoLedger(url, clock=SystemClock())


class Load:
    """Callers that accept and workers that save until they are told to stop, and what they were told."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self._ledger = a_ledger(url)
        self._rng = rng
        self._stopping = False
        self.batches: list[list[str]] = []
        self.accepted: list[str] = []
        self.saved: list[str] = []
        self.refused = 0
        self._told = asyncio.Event()

    async def more(self, *, accepted: int, saved: int) -> None:
        """Return when so many more have been acknowledged."""
        accepted, saved = len(self.accepted) + accepted, len(self.saved) + saved
        while len(self.accepted) < accepted or len(self.saved) < saved:
            self._told.clear()
            await self._told.wait()

    async def run(self, disturb: Callable[[], Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task(self._accept(n))
            for n in range(4):
                group.create_task(self._work(f"w-{n}"))
            await disturb()
            self._stopping = True
        await self._ledger.aclose()

    async def _accept(self, caller: int) -> None:
        n = 0
        while not self._stopping:
            n += 1
            ids = [f"{caller}-{n}-{i}" for i in range(self._rng.choice((1, 1, 1, 20)))]
            self.batches.append(ids)
            try:
                taken = await self._ledger.accept([offer(one) for one in ids])
            except Unavailable:
                self.refused += 1
            else:
                assert {one.kind for one in taken} == {"new"}
                self.accepted += ids
                self._told.set()

    async def _work(self, owner: str) -> None:
        while not self._stopping:
            try:
                claims = await self._ledger.claim(owner, now=NOW, lease_s=30, limit=20)
                await asyncio.gather(*(self._save(one.record, one.fence) for one in claims))
            except Unavailable:
                self.refused += 1

    async def _save(self, record: Record, fence: int) -> None:
        record.status = "delivered"
        await self._ledger.save(record, fence, now=NOW, due_at=None, held=(), release=True)
        self.saved.append(record.id)
        self._told.set()


@own_server
async def test_kill_9_of_the_server_loses_nothing_that_was_acknowledged(server: MongoServer) -> None:
    rng = random.Random(3)
    load = Load(server.uri("load"), rng)

    async def kill_again_and_again() -> None:
        for _ in range(KILLS):
            await load.more(accepted=rng.randrange(50, 150), saved=rng.randrange(20, 60))
            await asyncio.sleep(rng.uniform(0.0, 0.03))  # Any instant of a write will do.
            server.kill()
            await asyncio.to_thread(server.start)

    await load.run(kill_again_and_again)
    ledger = a_ledger(server.uri("load"))
    books = await ledger.books()
    assert (books.difference, books.missing, books.unknown) == (0, [], [])
    there = await _statuses(ledger)
    assert [one for one in load.accepted if one not in there] == []
    assert [one for one in load.saved if there[one] != "delivered"] == []
    # All or none, of those too that were not acknowledged.
    parts = [sum(one in there for one in ids) for ids in load.batches]
    assert [
        (found, len(ids)) for found, ids in zip(parts, load.batches, strict=True) if found not in (0, len(ids))
    ] == []
    assert len(load.accepted) > 50 * KILLS
    await ledger.aclose()


async def _statuses(ledger: MongoLedger) -> dict[str, str]:
    found: dict[str, str] = {}
    cursor: str | None = None
    while True:
        page = await ledger.page("t", status=None, user_id=None, limit=1_000, cursor=cursor)
        found |= {record.id: record.status for record in page.records}
        cursor = page.next_cursor
        if cursor is None:
            return found


@own_server
async def test_calls_of_a_frozen_server_end_within_their_deadline_and_go_on_after_it(server: MongoServer) -> None:
    ledger = a_ledger(server.uri("frozen"))
    await ledger.accept([offer("before")])
    (claim,) = await ledger.claim("w", now=NOW, lease_s=30, limit=1)
    server.freeze()
    calls: list[Any] = [
        ledger.accept([offer("during")]),
        ledger.save(claim.record, claim.fence, now=NOW, due_at=NOW + 30, held=(), release=False),
        ledger.get("before"),
        ledger.claim("w", now=NOW, lease_s=30, limit=1),
        ledger.user("t", "u"),
        ledger.renew("w", until=NOW + 60),
        ledger.probe(),
        ledger.cancel("before", "t", now=NOW),
    ]
    try:
        async with asyncio.timeout(CALL_S + 5):
            results = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        server.thaw()
    assert [type(one) for one in results] == [Unavailable] * len(calls)
    assert all(isinstance(one, Unavailable) and one.retry_after_s for one in results)
    await ledger.probe()
    (taken,) = await ledger.accept([offer("during")])
    assert taken.record.id == "during"
    assert (await ledger.books()).difference == 0
    await ledger.aclose()


async def test_no_two_workers_ever_hold_a_notification_under_one_fence(mongodb_url: str) -> None:
    ledgers = [a_ledger(mongodb_url) for _ in range(4)]
    await ledgers[0].accept([offer(f"n-{n}") for n in range(200)])
    held: list[tuple[str, int]] = []
    clock = ManualClock(epoch_s=NOW)

    async def work(ledger: MongoLedger, owner: str) -> None:
        for _ in range(8):
            clock.jump(1.0)
            # Leases that end at once: what one holds the others want too.
            claims = await ledger.claim(owner, now=clock.time(), lease_s=0.5, limit=40)
            held.extend((one.record.id, one.fence) for one in claims)

    await asyncio.gather(*(work(ledger, f"w-{n}") for n, ledger in enumerate(ledgers)))
    assert [one for one, count in Counter(held).items() if count > 1] == []
    assert len(held) > 200
    highest: dict[str, int] = defaultdict(int)
    for notification_id, fence in held:
        highest[notification_id] = max(highest[notification_id], fence)
    for notification_id, fence in list(highest.items())[:20]:
        record = await ledgers[0].get(notification_id)
        if fence > 1:
            with pytest.raises(LeaseLost):
                await ledgers[0].save(record, fence - 1, now=NOW, due_at=None, held=(), release=True)
        await ledgers[0].save(record, fence, now=NOW, due_at=None, held=(), release=True)
    for ledger in ledgers:
        await ledger.aclose()


async def test_claims_that_meet_share_all_that_is_due(mongodb_url: str) -> None:
    ledgers = [a_ledger(mongodb_url) for _ in range(4)]
    ids = [f"n-{n}" for n in range(100)]
    await ledgers[0].accept([offer(one) for one in ids])
    claims = await asyncio.gather(
        *(ledger.claim(f"w-{n}", now=NOW, lease_s=30, limit=25) for n, ledger in enumerate(ledgers))
    )
    assert sorted(one.record.id for some in claims for one in some) == sorted(ids)
    for ledger in ledgers:
        await ledger.aclose()


class FailPoint:
    """Makes the stand-in fail commands, as mongod's own fail point does."""

    def __init__(self, server: MongoServer, *commands: str, mode: Any = "alwaysOn", **how: Any) -> None:
        self._url = server.uri("admin")
        self._arm = {"configureFailPoint": "failCommand", "mode": mode, "data": {"failCommands": commands, **how}}

    def _say(self, **what: Any) -> None:
        with pymongo.MongoClient[dict[str, Any]](self._url) as client:
            client.admin.command(what)

    def __enter__(self) -> None:
        self._say(**self._arm)

    def __exit__(self, *_: object) -> None:
        self._say(configureFailPoint="failCommand", mode="off")


@own_server
async def test_errors_say_what_a_caller_may_conclude(server: MongoServer) -> None:
    ledger = a_ledger(f"mongodb://127.0.0.1:{server.port}/errors?appName=quiet-word")
    await ledger.accept([offer("a")])
    (one,) = await ledger.claim("w", now=NOW, lease_s=30, limit=1)
    with FailPoint(server, "insert", "update", errorCode=14031):
        with pytest.raises(Full) as full:
            await ledger.accept([offer("b")])
        assert full.value.retry_after_s
        with pytest.raises(Full):
            await ledger.save(one.record, one.fence, now=NOW, due_at=None, held=(), release=True)
        with pytest.raises(Full):
            await ledger.probe()
    with pytest.raises(NotFound):
        await ledger.get("b")
    for code in (13, 18):
        with (
            FailPoint(server, "find", errorCode=code),
            pytest.raises(ConfigurationError, match="credentials") as refused,
        ):
            await ledger.user("t", "u")
        assert "quiet-word" not in str(refused.value)
    # One that cannot be read is not one that is gone.
    with FailPoint(server, "find", errorCode=8), pytest.raises(Unavailable):
        await ledger.user("t", "u")
    await ledger.aclose()
    with pytest.raises(Unavailable):
        await ledger.get("a")


@own_server
async def test_a_commit_whose_answer_is_lost_counts_once(server: MongoServer) -> None:
    ledger = a_ledger(server.uri("commit"))
    await ledger.accept([offer("a")])
    with FailPoint(server, "commitTransaction", mode={"times": 1}, closeConnection=True):
        (taken,) = await ledger.accept([offer("b", owner="w")])
    assert taken.kind == "new"
    assert await ledger.renew("w", until=NOW + 60) == 1
    assert (await ledger.books()).accepted == 2
    await ledger.aclose()


@own_server
async def test_a_lease_of_which_nobody_heard_is_not_renewed(server: MongoServer) -> None:
    ledger = a_ledger(server.uri("unheard"))
    await ledger.accept([offer("a"), offer("b")])
    # Found, leased, and then the reading back fails.
    with FailPoint(server, "find", mode={"skip": 3}, errorCode=8), pytest.raises(Unavailable):
        await ledger.claim("w", now=NOW, lease_s=30, limit=9)
    assert await ledger.claim("w", now=NOW, lease_s=30, limit=9) == []
    assert await ledger.renew("w", until=NOW + 90) == 0
    assert {one.record.id for one in await ledger.claim("w", now=NOW + 30, lease_s=30, limit=9)} == {"a", "b"}
    assert await ledger.renew("w", until=NOW + 90) == 2
    await ledger.aclose()


async def test_a_notification_whose_sender_gave_up_is_whole_and_not_kept_from_others(mongodb_url: str) -> None:
    ledger = a_ledger(mongodb_url)
    await ledger.probe()
    sending = asyncio.create_task(ledger.accept([offer("a", owner="w"), offer("b", owner="w")]))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    taken = await ledger.accept([offer("a"), offer("b"), offer("c")])
    assert [one.kind for one in taken] == ["same", "same", "new"]
    assert await ledger.renew("w", until=NOW + 90) == 0
    assert len(await ledger.claim("w-2", now=NOW + 30, lease_s=30, limit=9)) == 3
    await ledger.aclose()


def test_a_worker_frozen_past_its_lease_is_refused_by_its_fence(tmp_path: Path, mongodb_url: str) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    env = {**outside.start_sandbox(), "BELLBUOY_DELIVERY__LEASE_S": "2", "BELLBUOY_LEDGER__URL": mongodb_url}
    api = Server(tmp_path / "api", env=env, arguments=("api", "--port", "0"))
    frozen, other = (Server(tmp_path / name, env=env, arguments=("worker",)) for name in ("frozen", "other"))
    try:
        api.start()
        frozen.start_silent()
        outside.fault("smtp", kind="latency", ms=600)
        sent = [api.send(to_email(n, collapse_key=f"c-{n}")) for n in range(5)]
        wait_for(lambda: all(api.status_of(s) == "delivering" for s in sent))
        assert frozen.process is not None
        frozen.process.send_signal(signal.SIGSTOP)
        other.start_silent()
        for one in sent:
            api.wait_status(one, "delivered")
        frozen.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "lease_lost" in [e["event"] for e in frozen.events()], why="its writes are refused")
        for one in sent:
            attempts = api.get(f"/v1/notifications/{one}")["deliveries"][0]["attempts"]
            assert [a["outcome"] for a in attempts] == ["uncertain", "delivered"]
        assert api.books()["delivered"] == len(sent)
    finally:
        for process in (frozen, other, api, outside):
            if process.process is not None:
                process.kill()


@own_server
async def test_a_transaction_whose_end_nobody_heard_locks_nothing(server: MongoServer) -> None:
    proxy = Proxy(server.port)
    slow = a_ledger(f"mongodb://127.0.0.1:{proxy.port}/bellbuoy?directConnection=true")
    other = a_ledger(server.uri("bellbuoy"))
    try:
        await slow.accept([offer("a")])
        proxy.delay(CALL_S / 2.5)  # An acceptance is several questions, so the deadline passes in the middle of it.
        with pytest.raises(Unavailable):
            await slow.accept([offer("b")])
        proxy.mend()
        async with asyncio.timeout(15):  # The server by itself would end it after a minute.
            while True:
                try:
                    await other.accept([offer("b")])
                    break
                except Busy as error:
                    await asyncio.sleep(error.retry_after_s or 0.1)
    finally:
        await slow.aclose()
        await other.aclose()
        proxy.close()


@own_server
async def test_a_driver_that_is_stuck_is_replaced(server: MongoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellbuoy.adapters.mongodb.database.CALL_S", 0.1)
    database = Database(server.uri("bellbuoy"), clock=SystemClock())
    first = database.database

    async def stuck() -> None:
        await asyncio.sleep(60)

    for _ in range(3):
        with pytest.raises(Unavailable):
            await database.run(stuck, within_s=0.1)
    assert database.database is not first
    assert await database.run(lambda: database.accepted.count_documents({}), within_s=5.0) == 0
    await database.aclose()
