"""A ledger that is written to, backed up into a folder, and restored to seconds of its past."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import apsw
import msgspec
import pytest

from bellbuoy.adapters.cipher import KeyRing
from bellbuoy.adapters.objectstore import Objects
from bellbuoy.adapters.sqlite import SqliteLedger, SqlitePlace, SqliteSource
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.backup import Backup, encode_sends
from bellbuoy.continuity.manifest import MERGED, sends_name
from bellbuoy.continuity.restore import Missed, Restore, Restored
from bellbuoy.continuity.retention import Keep
from bellbuoy.continuity.vault import Vault
from bellbuoy.continuity.verify import check_ledger, verify_objects
from bellbuoy.errors import Conflict, Damaged, Full, NotFound, StoreError, Unavailable
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.model.notification import Request
from bellbuoy.ports.archive import Change, Snapshot, Unchanging
from bellbuoy.ports.ledger import Offer
from bellbuoy.ports.sends import Sent
from tests.support.flow import RecordingTelemetry

REQUEST = msgspec.convert({"recipient": {"user_id": "u"}, "content": {"title": "t"}}, Request)
KEY = KeyRing({"k1": b"k" * 32})


class Yard:
    """A ledger, its backups, and its own history: what every row was after each change."""

    def __init__(self, root: Path, *, second: bool = False) -> None:
        self.root = root
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.keep = Keep()
        root.joinpath("data").mkdir()
        self.ledger = SqliteLedger(root / "data" / "bellbuoy.db", clock=self.clock, capture=True)
        names = ("one", "two") if second else ("one",)
        for name in names:
            root.joinpath(name).mkdir()
        self.targets = {name: Objects(f"file://{root / name}") for name in names}
        self.history: list[tuple[float, dict[str, list[Any]]]] = []
        self.remake()

    def remake(self) -> None:
        """As after a restart."""
        self.vault = Vault(self.targets, KEY, clock=self.clock, telemetry=self.telemetry)
        self.source = SqliteSource("ledger", self.ledger.database, clock=self.clock)
        self.backup = Backup(
            [self.source],
            self.vault,
            scratch=self.root / "scratch",
            keep=self.keep,
            clock=self.clock,
            rng=Random(1),
            telemetry=self.telemetry,
        )

    async def write(self, count: int) -> None:
        """Some seconds with a few changes in each."""
        for _ in range(count):
            await self.clock.advance(1.0)
            n = len(self.history)
            now = self.clock.time()
            record = Record(f"n{n}", "t", REQUEST, now, now + 60)
            await self.ledger.accept([Offer(record, b"h", now)])
            for claim in await self.ledger.claim("w", now=now, lease_s=10, limit=1):
                claim.record.note(now, "looked", str(n))
                await self.ledger.save(claim.record, claim.fence, now=now, due_at=now + 5, held=(), release=n % 2 == 0)
            self.history.append((now, rows(self.root / "data" / "bellbuoy.db")))

    def at(self, when: float) -> dict[str, list[Any]]:
        return [state for at, state in self.history if at <= when][-1]

    async def restore(self, at: float | None, to: str = "restored") -> tuple[Restored, dict[str, list[Any]]]:
        folder = self.root / to
        folder.mkdir(exist_ok=True)
        restore = Restore(self.vault, scratch=self.root / "scratch-2", clock=self.clock)
        place = SqlitePlace("ledger", folder / "bellbuoy.db")
        done = await restore.run(await restore.plan(at), [place])
        await place.finish("restored")
        return done, rows(folder / "bellbuoy.db")


def rows(path: Path) -> dict[str, list[Any]]:
    connection = apsw.Connection(str(path))
    try:
        tables = ("accepted", "notifications", "dead_letters", "users", "tombstones", "keys")
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables}
    finally:
        connection.close()


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(tmp_path)
    yield made
    await made.ledger.aclose()


async def busy(yard: Yard) -> None:
    """A full, shipped changes, an incremental, more shipped changes, a full in between, and so on."""
    await yard.write(3)
    assert not await yard.backup.ship()
    await yard.backup.full()
    for _ in range(2):
        await yard.write(4)
        assert await yard.backup.ship()
        await yard.write(3)
        assert await yard.backup.ship()
        await yard.backup.incremental()
        await yard.write(2)
        await yard.backup.full()
        await yard.write(2)
        assert await yard.backup.ship()


async def test_every_second_after_the_first_full_can_be_restored(yard: Yard) -> None:
    await busy(yard)
    first = (await yard.vault.backups("full")).backups[0].ended_at
    seconds = [at for at, _ in yard.history if at >= first]
    assert len(seconds) > 20
    for number, at in enumerate(seconds):
        for moment in (at, at + 0.5):
            done, state = await yard.restore(moment, f"r-{number}-{moment}")
            assert state == yard.at(moment)
            assert done.reached == pytest.approx(moment, abs=1.0)
    done, state = await yard.restore(None, "newest")
    assert state == yard.history[-1][1]
    assert done.reached == yard.history[-1][0]


async def test_what_records_no_changes_is_copied_with_every_incremental(yard: Yard) -> None:
    class Cache(Unchanging):
        name, guarantee = "cache", "as it was copied"

        async def full(self, folder: Path) -> Snapshot:
            (folder / "keys").write_text(str(yard.clock.time()))
            return Snapshot("", 0, yard.clock.time(), ["keys"])

    class Keys:
        name = "cache"

        async def begin(self, folder: Path) -> None:
            copied.append(float((folder / "keys").read_text()))

        async def apply(self, changes: Sequence[Change]) -> None:
            raise AssertionError("there are none")

        async def finish(self, timeline: str) -> None:
            pass

    yard.backup.sources = [*yard.backup.sources, Cache()]
    await yard.write(1)
    await yard.backup.full()
    taken = [yard.clock.time()]
    assert await yard.backup.incremental() is None, "not for itself alone"
    for _ in range(2):
        await yard.write(3)
        await yard.backup.ship()
        await yard.backup.incremental()
        taken.append(yard.clock.time())
    copied: list[float] = []
    restore = Restore(yard.vault, scratch=yard.root / "scratch-2", clock=yard.clock)
    for second in (taken[0], taken[1], taken[2] - 1.0, taken[2]):
        await restore.run(await restore.plan(second), [Keys()])
    assert copied == [taken[0], taken[1], taken[1], taken[2]]


async def test_a_second_that_cannot_be_reached_is_refused_and_the_last_one_named(yard: Yard) -> None:
    await busy(yard)
    last = yard.history[-1][0]
    await yard.write(5)
    with pytest.raises(Missed) as missed:
        await yard.restore(last + 3)
    assert missed.value.reachable == last


async def test_the_seconds_that_a_refusal_names_can_be_reached(yard: Yard) -> None:
    await yard.clock.advance(0.75)
    await yard.backup.full()
    with pytest.raises(NotFound) as none:
        await yard.restore(yard.clock.time() - 3_600, "before")
    with pytest.raises(Missed) as missed:
        await yard.restore(yard.clock.time() + 3_600, "after")
    for number, hint in enumerate((none.value.hint, missed.value.hint)):
        assert hint is not None
        named = datetime.fromisoformat(hint.split()[-1]).timestamp()
        await yard.restore(named, f"named-{number}")


async def test_a_disk_without_room_for_what_is_restored_is_said_to_be_full(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    await yard.restore(None, "small")
    size = (yard.root / "small" / "bellbuoy.db").stat().st_size
    await yard.write(40)
    await yard.backup.ship()
    for number, most in enumerate((size // 2, size)):
        with files_of_at_most(most), pytest.raises(Full, match="room"):
            await yard.restore(None, f"full-{number}")
        assert not (yard.root / f"full-{number}" / "bellbuoy.db").exists()
    await yard.restore(None, "roomy")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk with that much room: what writes beyond it is refused by the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_gap_in_what_was_shipped_is_found(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    for _ in range(3):
        await yard.write(2)
        await yard.backup.ship()
    shipped = [one.name for one in await yard.vault.names("log/") if not one.name.endswith("tip")]
    await yard.vault.delete([shipped[1]])
    with pytest.raises(Missed, match="is missing") as missed:
        await yard.restore(None)
    assert missed.value.reachable == yard.history[2][0]
    assert (await yard.restore(missed.value.reachable))[1] == yard.history[2][1]
    incremental = await yard.backup.incremental()
    assert incremental is not None
    assert len(incremental.sources) == 2
    with pytest.raises(Missed, match="is missing"):
        await yard.restore(None)


async def test_a_gap_in_the_ledger_begins_a_new_timeline_with_a_full(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    await yard.write(4)
    thief = apsw.Connection(str(yard.root / "data" / "bellbuoy.db"))
    thief.execute("DELETE FROM changes WHERE number = (SELECT max(number) - 1 FROM changes)")
    thief.close()
    assert not await yard.backup.ship()
    assert "backup_gap" in [name for name, _ in yard.telemetry.events]
    assert not await yard.backup.ship()
    await yard.backup.full()
    await yard.write(2)
    assert await yard.backup.ship()
    assert (await yard.restore(None))[1] == yard.history[-1][1]


async def test_writing_without_a_record_begins_a_new_timeline(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    await yard.write(2)
    await yard.backup.ship()
    await yard.ledger.aclose()
    path = yard.root / "data" / "bellbuoy.db"
    silent = SqliteLedger(path, clock=yard.clock)
    await silent.probe()
    await silent.aclose()
    yard.ledger = SqliteLedger(path, clock=yard.clock, capture=True)
    yard.remake()
    assert not await yard.backup.ship()
    await yard.backup.full()
    await yard.write(1)
    assert await yard.backup.ship()
    assert (await yard.restore(None))[1] == yard.history[-1][1]


@pytest.mark.parametrize("full_meanwhile", [False, True])
async def test_seconds_that_come_twice_are_told_apart(yard: Yard, full_meanwhile: bool) -> None:
    await yard.write(2)
    await yard.backup.full()
    await yard.write(2)
    assert await yard.backup.ship()
    yard.clock.jump(601.0)
    await yard.write(2)
    assert await yard.backup.ship()
    if full_meanwhile:
        await yard.backup.full()
        await yard.write(1)
        assert await yard.backup.ship()
    yard.clock.jump(-603.0)
    await yard.write(1)
    assert not await yard.backup.ship()  # It follows no full copy, so that one is taken.
    await yard.backup.full()
    await yard.write(8)
    assert await yard.backup.ship()
    for at, state in yard.history[-8:]:
        assert (await yard.restore(at, f"at-{at}"))[1] == state
    done, state = await yard.restore(None)
    assert (state, done.reached) == (yard.history[-1][1], yard.clock.time())
    assert (await yard.restore(yard.history[2][0], "before"))[1] == yard.history[2][1]
    with pytest.raises(Missed, match="not come yet"):
        await yard.restore(yard.clock.time() + 300, "ahead")


async def test_a_copy_that_follows_a_change_of_a_time_to_come_is_of_now(yard: Yard) -> None:
    yard.clock.jump(601.0)
    await yard.write(1)
    yard.clock.jump(-601.0)
    await yard.backup.full()
    assert (await yard.restore(yard.clock.time()))[1] == yard.history[-1][1]
    await yard.write(1)
    assert not await yard.backup.ship()


async def test_a_clock_that_is_set_back_by_less_than_a_restore_may_miss_goes_on(yard: Yard) -> None:
    await yard.write(2)
    await yard.backup.full()
    await yard.write(1)
    yard.clock.jump(-1.9)  # A second passes before the next change.
    await yard.write(2)
    assert await yard.backup.ship()
    assert (await yard.restore(None))[1] == yard.history[-1][1]


async def test_what_a_process_sent_is_told_although_its_clock_was_set_back(yard: Yard) -> None:
    def sent(name: str, at: float) -> Sent:
        return Sent(at, name, None, 0, None, Delivery(f"d-{name}", 0, "sms", "sms", "+1"))

    start = yard.clock.time()
    written = [("w", 1, 10, "old"), ("w", 2, 650, "ahead"), ("w", 3, 30, "back"), ("v", 1, 40, "other")]
    # Each time that parts are gathered their numbers begin anew.
    written += [(MERGED, 0, 20, "gathered"), (MERGED, 1, 21, "gathered too"), (MERGED, 0, 640, "gathered later")]
    for owner, number, after_s, name in written:
        at = start + after_s
        await yard.vault.put(sends_name(at, owner, number), encode_sends([sent(name, at)]))
    for foreign in ("sends/readme", "sends/000-x"):
        await yard.targets["one"].put(foreign, b"put there by hand")
    restore = Restore(yard.vault, scratch=yard.root / "scratch-2", clock=yard.clock)
    found = [one.notification_id async for group in restore.sent_since(start + 600) for one in group]
    assert sorted(found) == ["ahead", "back", "gathered later"]
    damaged = sends_name(start + 650, "w", 2)
    await yard.targets["one"].put(damaged, b"noise")
    with pytest.raises(Damaged) as error:
        _ = [group async for group in restore.sent_since(start + 600)]
    assert f"--without {damaged}" in str(error.value.hint)
    left = restore.sent_since(start + 600, without=[damaged])
    assert sorted([one.notification_id async for group in left for one in group]) == ["back", "gathered later"]


async def test_a_process_that_starts_anew_goes_on_where_the_other_was(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    for _ in range(3):
        await yard.write(2)
        yard.remake()
        assert await yard.backup.ship()
    assert (await yard.restore(None))[1] == yard.history[-1][1]


async def test_what_was_shipped_is_not_kept_in_the_ledger(yard: Yard) -> None:
    await yard.backup.full()
    await yard.write(20)
    await yard.backup.ship()
    with_changes = apsw.Connection(str(yard.root / "data" / "bellbuoy.db"))
    assert with_changes.execute("SELECT count(*) FROM changes").fetchall() == [(1,)]
    with_changes.close()


async def test_a_flipped_bit_in_any_object_is_found_and_named(yard: Yard) -> None:
    await busy(yard)
    root = yard.root / "one"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    assert {path.relative_to(root).parts[0] for path in files} == {"fulls", "incrementals", "log"}
    for path in files:
        whole = path.read_bytes()
        for at in {0, 4, len(whole) // 2, len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[at] ^= 1 << (at % 8)
            path.write_bytes(bytes(flipped))
            listed = await yard.vault.backups()
            found = await verify_objects(yard.vault, listed.backups, listed.damaged)
            name = str(path.relative_to(root))
            assert list(found.bad) == [f"one: {name}"], (name, at)
        path.write_bytes(whole)
    listed = await yard.vault.backups()
    assert (await verify_objects(yard.vault, listed.backups, listed.damaged)).sound


async def test_an_object_under_another_name_is_found(yard: Yard) -> None:
    await busy(yard)
    shipped = list((yard.root / "one" / "fulls").rglob("*.000000"))
    shipped[0].write_bytes(shipped[1].read_bytes())
    listed = await yard.vault.backups()
    found = await verify_objects(yard.vault, listed.backups, listed.damaged)
    assert list(found.bad) == [f"one: {shipped[0].relative_to(yard.root / 'one')}"]


async def test_what_is_half_uploaded_is_no_backup(yard: Yard) -> None:
    await yard.write(2)

    class Breaks(Objects):
        async def put(self, name: str, data: bytes) -> None:
            if name.endswith("manifest"):
                raise Unavailable("cut")
            await super().put(name, data)

    whole = yard.targets["one"]
    yard.targets["one"] = Breaks(f"file://{yard.root / 'one'}")
    with pytest.raises(Unavailable):
        await yard.backup.full()
    yard.targets["one"] = whole
    assert [path for path in (yard.root / "one").rglob("*") if path.is_file()]
    assert (await yard.vault.backups()).backups == []


async def test_a_restored_ledger_balances_and_is_what_the_live_one_says(yard: Yard) -> None:
    await busy(yard)
    done, _ = await yard.restore(None)
    restored = SqliteLedger(yard.root / "restored" / "bellbuoy.db", clock=yard.clock)
    checked = await check_ledger(restored, yard.ledger, reached=done.reached, rng=Random(2))
    assert checked.sound
    assert checked.books.accepted == len(yard.history)
    await restored.aclose()


async def test_a_place_that_is_not_empty_is_refused(yard: Yard) -> None:
    await yard.write(1)
    await yard.backup.full()
    await yard.restore(None)
    with pytest.raises(Conflict):
        await yard.restore(None)


async def test_a_target_that_is_away_stops_nothing_and_heals(tmp_path: Path) -> None:
    yard = Yard(tmp_path, second=True)

    class Away(Objects):
        async def put(self, name: str, data: bytes) -> None:
            raise Unavailable("away")

        async def list(self, prefix: str) -> Any:
            raise Unavailable("away")

        async def get(self, name: str) -> bytes:
            raise Unavailable("away")

    whole = dict(yard.targets)
    for lost in ("one", "two"):
        yard.targets[lost] = Away(f"file://{tmp_path / lost}")
        await yard.write(2)
        await yard.backup.full()
        await yard.write(2)
        assert await yard.backup.ship()
        await yard.backup.incremental()
        await yard.write(2)
        assert await yard.backup.ship()
        assert await yard.vault.heal() == 0
        assert yard.vault.behind == {lost}
        yard.targets[lost] = whole[lost]
        assert await yard.vault.heal() > 0
        assert await yard.vault.heal() == 0
        contents = [
            {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
            for name in ("one", "two")
        ]
        assert contents[0] == contents[1]
        assert (await yard.restore(None, f"after-{lost}"))[1] == yard.history[-1][1]
    await yard.ledger.aclose()


async def test_what_one_target_has_damaged_the_other_gives(tmp_path: Path) -> None:
    yard = Yard(tmp_path, second=True)
    await yard.write(2)
    await yard.backup.full()
    for path in (tmp_path / "one").rglob("*.000000"):
        path.write_bytes(b"gone")
    assert (await yard.restore(None))[1] == yard.history[-1][1]
    for path in (tmp_path / "two").rglob("*.000000"):
        path.write_bytes(b"gone")
    with pytest.raises(Damaged):
        await yard.restore(None, "again")
    await yard.ledger.aclose()


@pytest.mark.parametrize("error", [Full("no room"), Unavailable("read-only")])
async def test_a_target_that_takes_nothing_stops_nothing_and_heals(tmp_path: Path, error: StoreError) -> None:
    yard = Yard(tmp_path, second=True)

    class NoRoom(Objects):
        async def put(self, name: str, data: bytes) -> None:
            raise error

    whole = yard.targets["two"]
    await yard.write(2)
    await yard.vault.heal()
    await yard.backup.full()
    await yard.backup.ship()
    yard.targets["two"] = NoRoom(f"file://{yard.root / 'two'}")
    for _ in range(2):
        await yard.write(2)
        yard.vault.suspect()
        await yard.vault.heal()
        assert await yard.backup.ship()
    assert await yard.restore(None)
    assert yard.vault.behind == {"two"}
    yard.targets["two"] = whole
    assert await yard.vault.heal() > 0
    assert yard.vault.behind == set()
    await yard.ledger.aclose()


async def test_a_tip_that_is_damaged_in_one_target_is_mended_from_the_other(tmp_path: Path) -> None:
    yard = Yard(tmp_path, second=True)
    await yard.write(2)
    await yard.backup.full()
    await yard.backup.ship()
    (tip,) = (yard.root / "one").rglob("tip")
    whole = tip.read_bytes()
    tip.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    yard.vault.suspect()
    await yard.vault.heal()
    assert tip.read_bytes() == whole
    await yard.ledger.aclose()


async def test_what_is_replaced_is_there_until_the_new_one_is(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    await yard.write(3)
    await yard.backup.full()
    await yard.restore(None)
    path = yard.root / "restored" / "bellbuoy.db"
    before = rows(path)
    restore = Restore(yard.vault, scratch=yard.root / "scratch-2", clock=yard.clock)
    place = SqlitePlace("ledger", path, replace=True)
    await restore.run(await restore.plan(None), [place])

    def killed(*_: Any) -> Path:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(RuntimeError):
            await place.finish("again")
    assert rows(path) == before
