"""What the service writes into its audit log: groups, acts, heads, and what a full disk makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from bellbuoy.adapters.auditlog import FileAuditLog
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.breach import chains
from bellbuoy.errors import Full, Unavailable
from bellbuoy.model.audit import USERS_MAX, Entry, Head
from bellbuoy.service.audit import NAMES_MAX, WAITING_MAX, Audit, Subject
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.support.audit import age, contents, files, forget

READ: Subject = ("GET /v1/users/{user_id}", 200, "k", "default", None, ("email",))
ACT: Subject = ("PUT /v1/flags/{name}", 200, "k", "default", "f", ())


class Log(FileAuditLog):
    """Refuses while `full`."""

    full = False

    async def append(self, entries: Sequence[Entry]) -> None:
        if self.full:
            raise Full("no room")
        await super().append(entries)


class Made:
    def __init__(self, folder: Path, keep_s: float | None = None, before: Made | None = None) -> None:
        self.folder = folder / "0"
        self.clock: ManualClock = before.clock if before else ManualClock()
        self.telemetry = ServiceTelemetry(self.clock)
        self.store: SqliteControlStore = (
            before.store if before else SqliteControlStore(folder / "control.db", clock=self.clock)
        )
        self.log = Log(self.folder, where="here", clock=self.clock, segment_s=10.0)
        self.audit = Audit(self.log, self.store, keep_s=keep_s, clock=self.clock, telemetry=self.telemetry)

    def again(self, keep_s: float | None = None) -> Made:
        """The next run of the process, with the same files and ledger."""
        return Made(self.folder.parent, keep_s, self)

    def entries(self) -> list[Entry]:
        return list(chains.entries(files(contents(self.folder))))


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    one = Made(tmp_path)
    yield one
    await one.audit.aclose()
    await one.store.aclose()


async def test_what_is_alike_within_a_second_is_one_entry(made: Made) -> None:
    for n in range(10):
        made.audit.note(READ, [f"u{n % 2}"])
        made.clock.jump(0.01)
    made.audit.note(READ, (), unnamed=3)
    assert made.entries() == []
    await made.audit.flush()
    (entry,) = made.entries()
    assert (entry.users, entry.count, entry.unnamed) == ({"u0": 5, "u1": 5}, 11, 3)
    assert entry.last > entry.at


async def test_an_act_is_on_the_disk_before_it_is_answered_and_behind_what_was_before(made: Made) -> None:
    made.audit.note(READ, ["u"])
    await made.audit.record(ACT, ())
    assert {entry.action for entry in made.entries()} == {READ[0], ACT[0]}


async def test_whoever_gives_up_waiting_has_nothing_written_twice(made: Made) -> None:
    made.audit.note(READ, ["u"])
    waiting = asyncio.create_task(made.audit.flush())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await made.audit.flush()
    assert len(made.entries()) == 1
    assert chains.check(files(contents(made.folder))).findings == []


async def test_many_users_are_several_entries_and_too_many_are_only_counted(made: Made) -> None:
    made.audit.note(READ, [f"u{n}" for n in range(USERS_MAX + 1)])
    await made.audit.flush()
    assert [(len(entry.users), entry.count) for entry in made.entries()] == [(USERS_MAX, 1), (1, 0)]
    made.audit.note(READ, [f"u{n}" for n in range(NAMES_MAX + 5)])
    await made.audit.flush()
    assert sum(entry.unnamed for entry in made.entries()) == 5


async def test_with_a_full_disk_it_waits_says_so_and_is_written_later(made: Made) -> None:
    made.log.full = True
    await made.audit.record(ACT, ())
    assert ("audit_stalled", "audit") in made.telemetry.issues
    for n in range(WAITING_MAX + 10):
        made.audit.note((*ACT[:4], f"f{n}", ()), ())
    await made.audit.flush()
    made.log.full = False
    await made.audit.flush()
    assert made.telemetry.issues == {}
    assert len(made.entries()) == WAITING_MAX
    text = made.telemetry.exposition().decode()
    assert "bellbuoy_audit_lost_total 11.0" in text
    assert "bellbuoy_audit_waiting 0.0" in text


async def test_how_far_it_is_is_recorded_each_minute_and_what_is_too_old_forgotten(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_s=5_000.0)
    running = asyncio.create_task(made.audit.run())
    try:
        for _ in range(3):
            made.audit.note(READ, ["u"])
            await step(made, 61.0)
        kept = await made.store.page("audit", limit=10)
        assert len(kept) == 1
        assert (await made.audit.heads())[0].n >= 2
        made.clock.jump(10_000.0)
        await step(made, 3_700.0)
        assert [entry.action for entry in made.entries()][-1] == "pruned"
        assert chains.check(files(contents(made.folder)), await made.audit.heads()).findings == []
    finally:
        running.cancel()
        await made.audit.aclose()
        await made.store.aclose()


async def test_as_soon_as_something_is_forgotten_a_head_that_shows_it_is_recorded(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_s=5_000.0)
    for _ in range(3):
        made.audit.note(READ, ["u"])
        await made.audit.flush()
        made.clock.jump(3_000.0)
    running = asyncio.create_task(made.audit.run())
    try:
        await step(made, 5.0)
        (kept,) = await made.store.page("audit", limit=10)
        head = msgspec.json.decode(kept.data, type=Head)
        last = made.entries()[-1]
        assert (last.action, head.n) == ("pruned", last.n)
    finally:
        running.cancel()
        await made.audit.aclose()
        await made.store.aclose()


DAY = 86_400.0


async def days(made: Made, count: int) -> None:
    """An entry a day, each in a segment of its own."""
    for _ in range(count):
        await made.audit.record(ACT, ())
        made.clock.jump(DAY)


async def checked(made: Made, *more: Head) -> chains.Checked:
    return chains.check(files(contents(made.folder)), [*await made.audit.heads(), *more])


async def test_a_log_that_somebody_else_had_forget_is_found_although_the_service_went_on_with_it(made: Made) -> None:
    await days(made, 5)
    await made.audit.aclose()
    sealed = replace(made.log.head, forgotten=None)
    assert forget(made.folder, made.clock.time()) == 1
    again = made.again(keep_s=400 * DAY)
    await days(again, 2)
    for more in ((), (sealed,)):
        (finding,) = (await checked(again, *more)).findings
        assert (finding.entry, finding.what.startswith("entries 1 to 1 are gone")) == (1, True)
    # What it forgets itself later on vouches for no more than that.
    for known in await again.store.page("audit", limit=10):
        assert msgspec.json.decode(known.data, type=Head).forgotten == 0
    await again.audit.aclose()


@pytest.mark.parametrize("keep_days", [3.5, 1.5])
async def test_what_the_service_forgot_is_believed_after_restarts_with_any_setting(
    made: Made, keep_days: float
) -> None:
    await days(made, 5)
    running = asyncio.create_task(made.audit.run())
    await step(made, 61.0)
    running.cancel()
    await made.audit.aclose()
    one = made.again(keep_s=keep_days * DAY)
    running = asyncio.create_task(one.audit.run())
    await step(one, 5.0)
    running.cancel()
    await one.audit.aclose()
    # Run after run takes it over, also when the record of the one that forgot is too old to be kept.
    for _ in range(3):
        one = made.again(keep_s=1_000 * DAY)
        await one.audit.record(ACT, ())
        found = await checked(one)
        assert found.findings == []
        gone = found.chains[0].forgotten
        assert gone is not None
        assert (gone.up_to, gone.shown, gone.age_s > keep_days * DAY) == (found.chains[0].first - 1, True, True)
        await one.audit.aclose()
        for kept in (await one.store.page("audit", limit=10))[1:]:
            await one.store.delete("audit", kept.id, version=kept.version)


async def test_the_service_forgets_nothing_that_a_recorded_head_says_is_young(made: Made) -> None:
    await days(made, 1)
    await made.audit.aclose()
    age(made.folder)
    again = made.again(keep_s=400 * DAY)
    running = asyncio.create_task(again.audit.run())
    try:
        await step(again, 7_300.0)
        assert [entry.n for entry in again.entries()] == [1, 2]
    finally:
        running.cancel()
        await again.audit.aclose()


async def test_nothing_is_forgotten_before_the_ledger_has_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    await days(made, 5)
    await made.audit.aclose()
    again = made.again(keep_s=1.5 * DAY)

    async def away(*_: object, **__: object) -> object:
        raise Unavailable("the ledger is away")

    monkeypatch.setattr(again.store, "write", away)
    running = asyncio.create_task(again.audit.run())
    await step(again, 5.0)
    assert [entry.n for entry in again.entries()] == [1, 2, 3, 4, 5]
    monkeypatch.undo()
    await step(again, 7_300.0)
    running.cancel()
    found = await checked(again)
    assert (found.findings, found.chains[0].first > 1) == ([], True)
    await again.audit.aclose()


async def step(made: Made, seconds: float) -> None:
    """Let time pass; the disk is real, so it is given real time."""
    for _ in range(5):
        await made.clock.advance(seconds / 5)
        for _ in range(20):
            await asyncio.sleep(0.002)
