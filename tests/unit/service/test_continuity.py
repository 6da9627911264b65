"""The loop that ships, and takes, proves and prunes backups, beside whoever else does."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger
from bellbuoy.adapters.sqlite.changes import Recording
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.backup import decode_sends, silent
from bellbuoy.continuity.restore import Missed, Restore
from bellbuoy.continuity.turn import LEASE_S
from bellbuoy.continuity.vault import Vault
from bellbuoy.continuity.verify import verify_archive
from bellbuoy.errors import ConfigurationError, Conflict, Damaged, Gap, Unavailable
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.model.notification import Request
from bellbuoy.model.operation import ApiKey
from bellbuoy.model.transitions import cancel
from bellbuoy.ports.archive import Stored
from bellbuoy.ports.ledger import Offer
from bellbuoy.service import archive
from bellbuoy.service.continuity import OUT_OF_TURN_MAX, OUT_OF_TURN_S, Continuity
from bellbuoy.service.destination import Directory
from bellbuoy.service.keeper import OWNER, build_keeper
from bellbuoy.service.restoring import SCRATCH, Report, restore_into
from bellbuoy.service.settings import Settings, of_document
from bellbuoy.service.telemetry import ServiceTelemetry

REQUEST = msgspec.convert({"recipient": {"user_id": "u"}, "content": {"title": "t"}}, Request)
HOUR_S = 3600.0


def settings(root: Path, **backup: Any) -> Settings:
    document = Settings().model_dump(by_alias=True)
    document["data"]["dir"] = str(root / "data")
    document["backup"] |= {"url": f"file://{root / 'archive'}", **backup}
    return of_document(document)


class Process:
    """One of the processes that share a data directory."""

    def __init__(self, root: Path, name: str, clock: ManualClock, **backup: Any) -> None:
        self.settings = settings(root, **backup)
        self.settings.data.dir.mkdir(exist_ok=True)
        self.clock = clock
        self.telemetry = ServiceTelemetry(clock)
        self.events: list[str] = []
        self.telemetry.event = lambda name, **_: self.events.append(name)  # type: ignore[method-assign]
        self.ledger = SqliteLedger(self.settings.database_path, clock=clock, capture=True)
        self.control = SqliteControlStore(self.settings.data.dir / "control.db", clock=clock, capture=True)
        archive.make_folders(self.settings)
        keeper = build_keeper(
            self.settings, self.ledger, self.control, clock=clock, rng=Random(1), telemetry=self.telemetry
        )
        self.loop = Continuity(
            name,
            keeper,
            sends=archive.open_sends(archive.sends_of(self.settings), telemetry=self.telemetry),
            schedules=archive.schedules(self.settings),
            settings=self.settings,
            clock=clock,
            telemetry=self.telemetry,
        )

    async def accept(self, name: str) -> None:
        now = self.clock.time()
        await self.ledger.accept([Offer(Record(name, "t", REQUEST, now, now + 60), b"h", now)])

    async def step(self) -> list[str]:
        """One turn; what it told."""
        self.events.clear()
        await self.loop.step()
        return list(self.events)

    async def kinds(self) -> list[str]:
        return [one.kind for one in (await self.loop.keeper.vault.backups()).backups]

    async def aclose(self) -> None:
        await self.loop.aclose()
        await self.control.aclose()
        await self.ledger.aclose()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    # At 02:00 in UTC, so that the first full and the schedule's are one.
    made = Process(tmp_path, "one", ManualClock(epoch_s=1_800_064_800.0))
    yield made
    await made.aclose()


async def test_the_first_turn_takes_a_full_and_proves_it(process: Process) -> None:
    await process.accept("n")
    assert await process.step() == ["backup_taken", "backup_verified"]
    assert await process.kinds() == ["full"]
    assert await process.step() == []


async def test_a_day_of_the_usual_schedule(process: Process) -> None:
    for hour in range(25):
        await process.accept(f"n{hour}")
        await process.step()
        await process.clock.advance(HOUR_S)
    assert await process.kinds() == ["full", *["incremental"] * 6, "full"]
    names = [one.name for one in await process.loop.keeper.vault.names("log/")]
    assert len(names) < 10  # What was shipped in the day was gathered, and does not pile up.


async def test_what_was_missed_is_caught_up_once(process: Process) -> None:
    await process.step()
    await process.clock.advance(5 * 24 * HOUR_S)
    assert (await process.step())[0] == "backup_taken"
    assert await process.kinds() == ["full", "full"]
    await process.step()
    assert await process.kinds() == ["full", "full"]


async def test_one_of_two_processes_does_it(process: Process, tmp_path: Path) -> None:
    other = Process(tmp_path, "two", process.clock)
    lock = await archive.locks_of(other.control, clock=process.clock).acquire("backup", "other", lease_s=LEASE_S)
    assert lock is not None
    assert await process.step() == []
    assert await process.kinds() == []
    await process.clock.advance(LEASE_S + 1)
    assert "backup_taken" in await process.step()
    await other.aclose()


async def test_what_another_writes_without_a_record_is_in_a_new_full(process: Process) -> None:
    await process.accept("n1")
    await process.step()
    careless = SqliteLedger(process.settings.database_path, clock=process.clock)
    for turn in range(6):
        await careless.accept([Offer(Record(f"c{turn}", "t", REQUEST, 1.0, 2.0), b"h", 1.0)])
        await process.accept(f"n2{turn}")
        told = await process.step()
        if turn < OUT_OF_TURN_MAX - 1:
            assert told == ["backup_taken", "backup_verified"], "that of the first turn counts as well"
            continue
        assert told == ["backup_gap"], "not one full after the other"
        with pytest.raises(Gap, match="follows no full"):
            await process.loop.keeper.take("incremental")
    await process.clock.advance(OUT_OF_TURN_S + 1)
    assert await process.step() == ["backup_taken", "backup_verified"]
    await process.accept("n3")
    await process.step()
    assert await process.kinds() == ["full"] * (OUT_OF_TURN_MAX + 1)
    proven = await process.loop.keeper.prove()
    assert proven.checked is not None
    assert proven.checked.books.accepted == 14
    await careless.aclose()


async def test_an_archive_has_one_owner_whom_a_restore_keeps(process: Process, tmp_path: Path) -> None:
    await process.accept("n")
    await process.step()
    (tmp_path / "new").mkdir()
    other = Process(tmp_path / "new", "other", process.clock, url=f"file://{tmp_path / 'archive'}")
    await other.accept("m")
    assert await other.step() == ["backup_failed", "issue_raised"]
    assert "another installation" in other.telemetry.issues["backup_stale", "backup"].detail
    for work in (lambda: other.loop.keeper.take("full"), other.loop.keeper.prune):
        with pytest.raises(Conflict, match="another installation"):
            await work()
    assert await process.kinds() == ["full"]
    before = await process.control.read("backup", OWNER)
    assert before is not None
    configured = settings(tmp_path / "place", url=f"file://{tmp_path / 'archive'}")
    for restored, expected in ((tmp_path / "beside", None), (configured.data.dir, before.data)):
        await restore_into(
            configured,
            restored,
            at=None,
            backup=None,
            force=False,
            clock=process.clock,
            telemetry=other.telemetry,
            progress=silent,
        )
        control = SqliteControlStore(restored / "control.db", clock=process.clock)
        assert not await control.page("lease", limit=10)
        kept = await control.read("backup", OWNER)
        assert (kept.data if kept is not None else None) == expected
        await control.aclose()
    await other.loop.keeper.take("full", take_over=True)
    with pytest.raises(Conflict):
        await process.loop.keeper.take("full")
    await other.aclose()


async def test_nobody_ships_sends_into_the_archive_of_another(process: Process, tmp_path: Path) -> None:
    await process.step()
    (tmp_path / "new").mkdir()
    other = Process(tmp_path / "new", "other", process.clock, url=f"file://{tmp_path / 'archive'}")
    assert other.loop.journal is not None
    await other.loop.journal.note(Record("n", "t", REQUEST, 1.0, 2.0), Delivery("d", 0, "push", "fcm", "e"), now=1.0)
    await other.step()
    await other.aclose()
    assert await process.loop.keeper.vault.names("sends/") == []
    assert list((tmp_path / "new" / "data" / "sends").glob("*/*"))


async def test_a_restore_says_what_of_the_send_journal_is_lost(process: Process, tmp_path: Path) -> None:
    assert process.loop.journal is not None
    await process.step()
    for number in range(3):
        delivery = Delivery(f"d{number}", 0, "push", "fcm", "e")
        await process.loop.journal.note(Record("n", "t", REQUEST, 1.0, 2.0), delivery, now=process.clock.time())
        await process.step()
    _, middle, last = sorted((tmp_path / "archive" / "sends").iterdir())
    middle.unlink()
    last.write_bytes(b"noise")
    left_out = f"sends/{last.name}"
    report = await restore_into(
        process.settings,
        tmp_path / "to",
        at=None,
        backup=None,
        force=False,
        without=[left_out],
        clock=process.clock,
        telemetry=process.telemetry,
        progress=silent,
    )
    assert report.absent_sends == ["sends/one 2-2", left_out]


async def test_a_restore_writes_through_no_link(process: Process, tmp_path: Path) -> None:
    await process.accept("n")
    await process.step()
    important, to = tmp_path / "important", tmp_path / "to"
    important.write_text("mine")
    to.mkdir()
    (to / "restored-settings.json").symlink_to(important)
    how: dict[str, Any] = {"at": None, "backup": None, "force": False, "progress": silent}
    await restore_into(process.settings, to, clock=process.clock, telemetry=process.telemetry, **how)
    assert important.read_text() == "mine"
    assert "backup" in msgspec.json.decode((to / "restored-settings.json").read_bytes())


async def test_a_restore_says_where_it_could_not_look(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.accept("n")
    await process.step()
    opened, given = archive.open_vault, settings(tmp_path)

    class Away:
        async def list(self, prefix: str) -> list[Stored]:
            raise Unavailable("the target does not answer")

        get = list

    def with_another(*arguments: Any, **options: Any) -> Vault:
        vault = opened(*arguments, **options)
        vault.targets = {**vault.targets, "second": Away()}  # type: ignore[dict-item]
        return vault

    monkeypatch.setattr(archive, "open_vault", with_another)
    how: dict[str, Any] = {"at": None, "backup": None, "force": True, "progress": silent}
    how |= {"clock": process.clock, "telemetry": process.telemetry}
    # What was sent is in the directory that is replaced, whatever directory the settings name.
    given.data.dir.rename(tmp_path / "moved")
    report = await restore_into(given, tmp_path / "side", **how)
    assert report.silent_targets == ["second"]
    (told,) = report.absent_sends
    assert str(given.data.dir / "sends") in told
    shutil.copytree(tmp_path / "moved" / "sends", tmp_path / "own" / "sends")
    assert (await restore_into(given, tmp_path / "own", **how)).absent_sends == []


async def test_an_archive_that_vanished_is_told_of_and_begun_anew(process: Process, tmp_path: Path) -> None:
    await process.step()
    shutil.rmtree(tmp_path / "archive")
    (tmp_path / "archive").mkdir()
    again = Process(tmp_path, "again", process.clock)
    await process.clock.advance(2 * LEASE_S)
    told = await again.step()
    assert told[0] == "backup_archive_empty"
    assert await again.kinds() == ["full"]
    assert "backup_archive_empty" not in await again.step()
    await again.aclose()


async def test_an_archive_that_vanished_is_not_called_sound(process: Process, tmp_path: Path) -> None:
    await process.step()
    shutil.rmtree(tmp_path / "archive")
    (tmp_path / "archive").mkdir()
    found = await process.loop.keeper.verify()
    assert list(found.bad) == ["owner", "fulls/"]
    assert found.unproven is not None
    assert not found.sound


async def test_nothing_of_ours_is_shipped_to_prove_the_archive_of_another(process: Process, tmp_path: Path) -> None:
    await process.step()
    (tmp_path / "new").mkdir()
    other = Process(tmp_path / "new", "other", process.clock, url=f"file://{tmp_path / 'archive'}")
    before = await process.loop.keeper.vault.names("")
    await other.accept("m")
    with pytest.raises(Conflict, match="another installation"):
        await other.loop.keeper.prove()
    assert await process.loop.keeper.vault.names("") == before
    await other.aclose()


async def test_a_restore_that_comes_to_nothing_leaves_nothing(process: Process, tmp_path: Path) -> None:
    await process.accept("n")
    await process.step()
    for folder in (SCRATCH, "scratch"):  # What one that was killed has left, and what is somebody's.
        left = tmp_path / "there" / folder / "tmpx"
        left.mkdir(parents=True)
        (left / "bellbuoy.db").touch()
    later = process.clock.time() + HOUR_S

    async def restore(to: str, at: float | None, **options: Any) -> Report:
        return await restore_into(
            process.settings,
            tmp_path / to,
            at=at,
            backup=None,
            force=False,
            clock=process.clock,
            telemetry=process.telemetry,
            progress=silent,
            **options,
        )

    with pytest.raises(Missed):
        await restore("made", later)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigurationError, match="no object of the send journal"):
        await restore("made", None, without=["log/ledger/x/1-2"])
    for part in (tmp_path / "archive" / "fulls").rglob("control.db.*"):
        part.write_bytes(b"noise")
    with pytest.raises(Damaged):
        await restore("there", None)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["scratch"]


async def test_flags_short_of_the_second_asked_for_are_a_miss_unless_that_is_accepted(
    process: Process, tmp_path: Path
) -> None:
    await process.step()
    await process.clock.advance(10.0)
    await process.accept("n")
    await process.loop.keeper.backup.ship()
    before = process.clock.time()
    await process.clock.advance(10.0)
    await process.accept("m")
    backup = process.loop.keeper.backup
    backup.sources = backup.sources[:1]  # As when it ends between the two.
    await backup.ship()
    restore = Restore(process.loop.keeper.vault, scratch=tmp_path / "scratch", clock=process.clock)
    with pytest.raises(Missed, match="of control") as missed:
        await restore.plan(process.clock.time())
    assert missed.value.reachable == before
    assert "--accept-earlier" in str(missed.value.hint)
    for plan in (await restore.plan(None), await restore.plan(process.clock.time(), accept_earlier=True)):
        assert {way.copy.source: way.reached for way in plan.ways if way.copy.timeline} == {
            "ledger": process.clock.time(),
            "control": before,
        }


async def test_flags_are_restored_to_the_second_too(process: Process, tmp_path: Path) -> None:
    await process.accept("n")
    await process.control.write("flag", "f", b"at first", version=0)
    await process.step()
    wanted: dict[bytes, float] = {}
    for version, value in enumerate((b"then", b"later", b"at last"), start=1):
        await process.clock.advance(10.0)
        await process.control.write("flag", "f", value, version=version)
        await process.accept(f"n{version}")
        wanted[value] = process.clock.time()
    await process.step()
    vault = process.loop.keeper.vault
    restore = Restore(vault, scratch=tmp_path / "scratch", clock=process.clock)
    for value, second in wanted.items():
        place = Directory(tmp_path / value.hex(), clock=process.clock)
        Path(place.where).mkdir()
        await restore.run(await restore.plan(second), place.places)
        async with place.opened() as (_, control):
            found = await control.read("flag", "f")
        assert found is not None
        assert found.data == value
    before = [one.name for one in await vault.names("log/control/")]
    await process.clock.advance(10.0)
    await process.step()  # Which takes the lock, a lease.
    assert [one.name for one in await vault.names("log/control/")] == before


async def test_a_change_that_got_lost_is_found(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    now = process.clock.time()
    await process.ledger.put_key(ApiKey("k", "for tests", "t", ("read",), b"hash", now))
    await process.accept("n")
    await process.step()
    (claim,) = await process.ledger.claim("w", now=now, lease_s=10, limit=1)
    cancel(claim.record, now)
    assert claim.record.over
    with monkeypatch.context() as patched:
        patched.setattr(Recording, "write", lambda _: None)
        await process.ledger.save(claim.record, claim.fence, now=now, due_at=None, held=(), release=True)
    await process.accept("m")
    found = await process.loop.keeper.prove()
    assert not found.sound
    assert found.checked is not None
    assert found.checked.different == ["n"]


async def test_what_is_sent_is_shipped_by_whoever_sends_it(process: Process, tmp_path: Path) -> None:
    other = Process(tmp_path, "two", process.clock)
    for one in (process, other):
        assert one.loop.journal is not None
        record = Record("n", "t", REQUEST, 1.0, 2.0)
        await one.loop.journal.note(record, Delivery("d", 0, "push", "fcm", "e"), now=process.clock.time())
        await one.step()
    names = [one.name for one in await process.loop.keeper.vault.names("sends/")]
    assert [name.split("-")[1] for name in names] == ["one", "two"]
    assert not list((tmp_path / "data" / "sends").glob("*/*"))
    await other.aclose()


async def test_what_a_dead_process_noted_is_shipped_by_the_next(tmp_path: Path) -> None:
    clock = ManualClock()
    dead = archive.open_sends(tmp_path / "data" / "sends", telemetry=ServiceTelemetry(clock))
    await dead.journal.note(Record("n", "t", REQUEST, 1.0, 2.0), Delivery("d", 0, "push", "fcm", "e"), now=1.0)
    for lock in dead.locks:
        lock.close()  # As its end does.
    process = Process(tmp_path, "next", clock)
    await process.step()
    assert len(await process.loop.keeper.vault.names("sends/")) == 1
    await process.aclose()


@pytest.mark.parametrize("harm", ["damaged", "gone"])
async def test_what_is_lost_of_the_changes_is_made_good_by_one_full(
    process: Process, tmp_path: Path, harm: str
) -> None:
    await process.accept("n0")
    await process.step()
    for n in (1, 2, 3):
        await process.accept(f"n{n}")
        await process.step()
    victim = [path for path in sorted((tmp_path / "archive" / "log" / "ledger").rglob("*-*")) if path.is_file()][1]
    victim.write_bytes(b"spoilt") if harm == "damaged" else victim.unlink()
    await process.clock.advance(4 * HOUR_S)
    told = await process.step()
    assert ("backup_object_damaged" in told) == (harm == "damaged")
    assert "backup_taken" in told
    await process.accept("n4")
    assert await process.step() == ["backup_taken", "backup_verified"], "at once"
    assert await process.kinds() == ["full", "incremental", "full"]
    for n in range(3):
        await process.clock.advance(4 * HOUR_S)
        await process.accept(f"m{n}")
        assert await process.step() == ["backup_taken", "backup_verified"]
    assert await process.kinds() == ["full", "incremental", "full", *["incremental"] * 3], "not again"


async def test_a_process_that_was_silent_for_long_begins_another_series(process: Process) -> None:
    await process.step()
    for _ in range(3):
        await note(process, "a")
        await process.step()
        await process.clock.advance(10 * 24 * HOUR_S)
        await process.step()
        assert (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad == {}


async def note(process: Process, name: str) -> None:
    assert process.loop.journal is not None
    delivery = Delivery("d", 0, "push", "fcm", "e")
    await process.loop.journal.note(Record(name, "t", REQUEST, 1.0, 2.0), delivery, now=process.clock.time())


async def test_damage_in_the_send_journal_is_told_and_the_rest_is_shipped(tmp_path: Path) -> None:
    process = Process(tmp_path, "one", ManualClock())
    for name in ("a", "b", "c"):
        await note(process, name)
    [segment] = (tmp_path / "data" / "sends").rglob("*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    vault = process.loop.keeper.vault
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vault, "targets", {})
        told = await process.step() + await process.step()
    assert told.count("journal_damaged") == 1, "not with each try"
    detail = process.telemetry.issues["journal_damaged", "sends"].detail
    assert detail.startswith("1 entries")
    await process.step()
    [name] = [one.name for one in await vault.names("sends/")]
    assert [sent.notification_id for sent in decode_sends(await vault.get(name))] == ["a", "c"]
    [kept] = (tmp_path / "data" / "sends").rglob("*.damaged")
    assert kept.read_bytes() == data
    assert kept.name in detail or kept.name.partition("-")[2] in detail
    await process.aclose()
    again = Process(tmp_path, "two", process.clock)
    await again.step()
    assert kept.name in again.telemetry.issues["journal_damaged", "sends"].detail, "until somebody moves it away"
    await again.aclose()


async def test_a_part_of_the_send_journal_has_its_number_when_it_is_in_the_archive(process: Process) -> None:
    vault = process.loop.keeper.vault
    await note(process, "a")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vault, "targets", {})
        assert "backup_failed" in await process.step()
    await process.step()
    await note(process, "b")
    await process.step()
    assert [one.name.split("-")[-1].lstrip("0") for one in await vault.names("sends/")] == ["1", "2"]


async def test_a_human_is_told_when_nothing_was_proven_for_long(process: Process) -> None:
    await process.step()
    await process.clock.advance(37 * HOUR_S)
    process.loop.keeper.backup.vault.targets = {}
    process.loop.keeper.vault.targets = {}
    assert "backup_failed" in await process.step()
    assert ("backup_stale", "backup") in process.telemetry.issues
    assert b"bellbuoy_backup_last_verified_seconds 133" in process.telemetry.exposition()


async def test_what_a_clock_that_was_ahead_proved_counts_for_nothing(process: Process) -> None:
    process.clock.jump(1_000 * HOUR_S)
    await process.step()
    process.clock.jump(-1_000 * HOUR_S)
    process.loop.keeper.backup.vault.targets = {}
    await process.step()
    assert ("backup_stale", "backup") not in process.telemetry.issues
    await process.clock.advance(37 * HOUR_S)
    await process.step()
    assert ("backup_stale", "backup") in process.telemetry.issues


async def test_a_process_that_is_started_anew_each_day_does_not_hide_that_nothing_is_proven(tmp_path: Path) -> None:
    clock = ManualClock(epoch_s=1_800_064_800.0)
    for day in range(3):
        process = Process(tmp_path, "one", clock, verify=False)
        await process.step()
        assert (("backup_stale", "backup") in process.telemetry.issues) == (day == 2)
        await process.aclose()
        await clock.advance(24 * HOUR_S)


async def test_the_alert_ends_with_the_next_that_is_proven(tmp_path: Path) -> None:
    process = Process(tmp_path, "one", ManualClock(), stale_s=60.0, verify=False)
    await process.step()
    await process.clock.advance(61)
    await process.step()
    assert "verify is off" in process.telemetry.issues["backup_stale", "backup"].detail
    await process.loop.keeper.prove()
    await process.step()
    assert not process.telemetry.issues
    await process.aclose()


async def test_the_alert_stays_while_another_has_the_lock_until_something_is_proven(tmp_path: Path) -> None:
    process = Process(tmp_path, "one", ManualClock(), stale_s=60.0, verify=False)
    await process.step()
    await process.clock.advance(61)
    await process.step()
    lock = await archive.locks_of(process.control, clock=process.clock).acquire("backup", "cli", lease_s=LEASE_S)
    assert lock is not None
    for _ in range(2):
        assert await process.step() == []
    assert process.telemetry.issues
    await process.clock.advance(1.0)
    await process.loop.keeper.prove()
    assert await process.step() == ["issue_cleared"]
    await process.aclose()


async def test_the_copy_of_the_settings_holds_no_secret(tmp_path: Path) -> None:
    document = Settings().model_dump(by_alias=True)
    document["alerts"]["pagerduty"]["routing_key"] = "a-secret-routing-key"
    document["ledger"]["url"] = "mongodb://user:a-secret-password@host/db"
    source = archive.Configuration(of_document(document), clock=ManualClock())
    await source.full(tmp_path)
    assert "a-secret" not in (tmp_path / "settings.json").read_text()


def test_one_of_two_folders_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    loop = f"file://{tmp_path / 'loop'}"
    two = settings(tmp_path, second_url=loop)
    archive.make_folders(two)
    assert archive.folders(two) == [tmp_path / "archive"]
    assert (tmp_path / "archive").is_dir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        archive.make_folders(settings(tmp_path, url=loop))


def test_what_leaves_the_machine_needs_a_key_or_a_word(tmp_path: Path) -> None:
    clock, telemetry = ManualClock(), ServiceTelemetry()
    away = settings(tmp_path, url="s3://bucket/prefix", endpoint="http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="no key") as raised:
        archive.open_vault(away, clock=clock, telemetry=telemetry)
    assert "encrypt = false" in (raised.value.hint or "")
    told_off = settings(tmp_path, url="s3://bucket/prefix", endpoint="http://127.0.0.1:1", encrypt=False)
    archive.open_vault(told_off, clock=clock, telemetry=telemetry)
    with pytest.raises(ConfigurationError, match="no key"):
        archive.open_vault(settings(tmp_path, encrypt=True), clock=clock, telemetry=telemetry)


async def test_a_gap_that_somebody_remembers_keeps_nobody_from_writing(process: Process, tmp_path: Path) -> None:
    await process.step()
    for name in ("a", "b", "c", "d"):
        await process.accept(name)
    # Another row is there after the gap, so that reading stops in the midst.
    await process.ledger._db.write(lambda connection: connection.execute("DELETE FROM changes WHERE number = 3"))
    (source,) = [one for one in process.loop.keeper.backup.sources if one.name == "ledger"]
    with pytest.raises(Gap) as remembered:
        await source.changes(1, bytes_max=10**6)
    other = Process(tmp_path, "two", process.clock)
    await other.accept("of another process")
    await process.accept("after that")
    assert remembered.value.__traceback__ is not None
    await other.aclose()
