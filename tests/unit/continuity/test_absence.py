"""What somebody took out of an archive by hand is named, however it was taken, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from random import Random

import pytest

from bellbuoy.adapters.memory_shared import MemoryLocks
from bellbuoy.adapters.objectstore import Objects
from bellbuoy.continuity.absence import lost_sends, torn
from bellbuoy.continuity.backup import decode_sends, encode_sends
from bellbuoy.continuity.look import look_at
from bellbuoy.continuity.manifest import manifest_name, sends_name
from bellbuoy.continuity.restore import Missed
from bellbuoy.continuity.retention import DAY_S, Keep, Pruned
from bellbuoy.continuity.survey import absent_sends
from bellbuoy.continuity.verify import verify_archive, verify_backup
from bellbuoy.errors import NotFound, Unavailable
from bellbuoy.model.delivery import Delivery
from bellbuoy.ports.sends import Sent
from bellbuoy.service.destination import Destination
from bellbuoy.service.keeper import Keeper
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.unit.continuity.test_backup import Yard

HOUR_S = 3600.0


class Archive(Yard):
    """A yard whose process also ships what it sends, and prunes."""

    def __init__(self, root: Path, *, second: bool = False) -> None:
        super().__init__(root, second=second)
        self.sent = 0

    async def ship(self, count: int = 1) -> None:
        for _ in range(count):
            await self.write(1)
            await self.backup.ship()
            self.sent += 1
            await self.send("1-one", self.sent)

    async def send(self, owner: str, number: int) -> None:
        now = self.clock.time()
        sent = Sent(now, f"n{number}", None, 0, None, Delivery("d", 0, "push", "fcm", "e"))
        await self.vault.put(sends_name(now, owner, number), encode_sends([sent]))

    async def bad(self) -> dict[str, str]:
        return (await verify_archive(self.vault, clock=self.clock)).bad

    async def names(self) -> list[str]:
        return [one.name for one in await self.vault.names("")]

    async def lose(self, *names: str, of: str | None = None) -> None:
        """Delete objects by hand, in one target or in all; folders as a whole."""
        for target in [of] if of is not None else self.targets:
            store = self.targets[target]
            gone = [one.name for one in await store.list("") if one.name in names or one.name.startswith(names)]
            assert gone
            await store.delete(gone)

    async def prune(self, keep: Keep) -> Pruned:
        def nowhere(_: Path) -> Destination:
            raise AssertionError

        keeper = Keeper(
            self.backup,
            live=None,
            rehearse=nowhere,
            locks=MemoryLocks(clock=self.clock),
            control=None,
            keep=keep,
            scratch=self.root / "scratch-3",
            ship_s=10.0,
            clock=self.clock,
            rng=Random(3),
            telemetry=ServiceTelemetry(self.clock),
        )
        return await keeper.prune()


async def lived_in(archive: Archive) -> None:
    """Two fulls, each with an incremental behind it, and what was shipped since."""
    await archive.vault.put_owner("me")
    await archive.write(1)
    for _ in range(2):
        await archive.backup.full()
        await archive.ship(4)
        await archive.clock.advance(HOUR_S)
        await archive.backup.incremental()
    await archive.ship(4)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    made = Archive(tmp_path)
    await lived_in(made)
    yield made
    await made.ledger.aclose()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Archive]:
    made = Archive(tmp_path, second=True)
    await made.vault.heal()
    await lived_in(made)
    yield made
    await made.ledger.aclose()


async def ids(archive: Archive, kind: str) -> list[str]:
    return [one.id for one in (await archive.vault.backups()).backups if one.kind == kind]


def shipped(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("log/") and not name.endswith("tip")]


def parts(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("sends/") and "-all-" not in name]


async def test_what_is_all_there_lacks_nothing(archive: Archive, tmp_path: Path) -> None:
    assert await archive.bad() == {}
    for _ in range(3):
        await archive.backup.incremental()
        assert await archive.bad() == {}
        await archive.ship(2)
    await archive.source.renew()
    assert not await archive.backup.ship()
    assert await archive.bad() == {}
    await archive.backup.full()
    await archive.ship(3)
    await archive.backup.incremental()
    assert await archive.bad() == {}


@pytest.mark.parametrize("gather", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1, 3], ids=["first", "middle", "last"])
async def test_a_shipped_object_that_is_gone(archive: Archive, which: int, gather: str) -> None:
    names = shipped(await archive.names())
    last = await archive.vault.tip("ledger", names[0].split("/")[2])
    assert last is not None
    after, upto = (int(number) for number in names[which].split("/")[-1].split("-"))
    await archive.lose(names[which])
    if gather == "after":
        await archive.backup.incremental()
    bad = await archive.bad()
    [(name, why)] = bad.items()
    assert name == f"{names[which].rpartition('/')[0]}/{after + 1}-{upto}"
    assert "missing: no second after 20" in why
    await archive.backup.full()
    assert " before 20" in (await archive.bad())[name], "the copy leads on from there"
    await archive.clock.advance(8 * DAY_S)
    await archive.backup.full()
    await archive.prune(Keep())
    assert name not in await archive.bad() or gather == "before", "nobody is promised those seconds any more"


async def test_the_seconds_that_are_named_are_those_that_cannot_be_restored(archive: Archive) -> None:
    names = shipped(await archive.names())
    whole = archive.history[-4][0]
    await archive.lose(names[1])
    [why] = (await archive.bad()).values()
    named = datetime.fromisoformat(why.split("after ")[1].split()[0])
    with pytest.raises(Missed) as missed:
        await archive.restore(None)
    assert missed.value.reachable == whole
    assert named.timestamp() == int(whole)


@pytest.mark.parametrize("later", [False, True], ids=["newest", "older"])
@pytest.mark.parametrize("kind", ["fulls", "incrementals"])
async def test_a_whole_backup_that_is_gone(archive: Archive, kind: str, later: bool) -> None:
    if later:
        await archive.backup.full()
        await archive.ship(1)
        await archive.backup.incremental()
    victim = (await ids(archive, kind[:-1]))[-2]
    await archive.lose(f"{kind}/{victim}/")
    bad = await archive.bad()
    assert f"{kind}/{victim}/manifest" in bad
    assert "had to be there until" in bad[f"{kind}/{victim}/manifest"]
    for _ in range(2):
        await archive.ship(1)
        await archive.backup.incremental()
        assert f"{kind}/{victim}/manifest" in await archive.bad(), "later manifests still say so"
    days = 31 if kind == "fulls" else 8
    await archive.clock.advance(days * DAY_S)
    await archive.backup.full()
    await archive.prune(Keep())
    assert await archive.bad() == {}, "its time is over"


async def test_the_last_incremental_that_is_gone_before_anything_else_was_written(archive: Archive) -> None:
    await archive.backup.incremental()
    [*_, victim] = await ids(archive, "incremental")
    await archive.lose(f"incrementals/{victim}/")
    assert any("missing: no second after" in why for why in (await archive.bad()).values())


async def test_all_fulls_that_are_gone(archive: Archive) -> None:
    await archive.lose("fulls/")
    bad = await archive.bad()
    assert any("no full copy" in why for why in bad.values())
    assert "nothing can be restored" in bad["fulls/"]


async def test_an_archive_of_nothing(archive: Archive) -> None:
    await archive.lose("")
    found = await verify_archive(archive.vault, clock=archive.clock)
    assert list(found.bad) == ["fulls/"]
    assert not found.sound


async def test_the_only_full_that_is_gone(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    await archive.backup.full()
    await archive.backup.ship()
    await archive.lose("fulls/")
    assert any("no full copy" in why for why in (await archive.bad()).values())
    await archive.ledger.aclose()


async def test_a_tip_that_is_gone(archive: Archive) -> None:
    [tip] = [name for name in await archive.names() if name.endswith("/tip")]
    await archive.lose(tip)
    assert list(await archive.bad()) == [tip]


@pytest.mark.parametrize("victim", ["owner", "sends"])
async def test_what_no_manifest_names_as_its_own(archive: Archive, victim: str) -> None:
    name = next(one for one in await archive.names() if one == victim or ("-all-" in one and victim == "sends"))
    for one in await ids(archive, "incremental"):
        await archive.targets["one"].delete([f"incrementals/{one}/manifest"])
    await archive.lose(name)
    assert name in await archive.bad()


@pytest.mark.parametrize("gather", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1], ids=["first", "middle"])
async def test_a_part_of_the_send_journal_that_is_gone(archive: Archive, which: int, gather: str) -> None:
    await archive.send("2-two", 1)
    await archive.send("2-two", 2)
    name = parts(await archive.names())[which]
    number = int(name.rpartition("-")[2])
    await archive.lose(name)
    if gather == "after":
        await archive.clock.advance(1)
        await archive.backup.incremental()
        await archive.ship(1)
    bad = await archive.bad()
    assert list(bad) == [f"sends/1-one {number}-{number}"]
    assert "sent again after a restore" in bad[f"sends/1-one {number}-{number}"]
    assert absent_sends(await look_at(archive.vault), archive.clock.time()) == bad
    await archive.clock.advance(31 * DAY_S)
    assert lost_sends(await look_at(archive.vault), archive.clock.time()) == [] or gather == "before"


async def test_what_is_there_again_is_gathered_and_lost_no_longer(archive: Archive) -> None:
    names = await archive.names()
    away = {name: (archive.root / "one" / name).read_bytes() for name in (shipped(names)[1], parts(names)[1])}
    await archive.lose(*away)
    await archive.clock.advance(1)
    await archive.backup.incremental()
    assert len(await archive.bad()) == 2
    for name, data in away.items():
        await archive.targets["one"].put(name, data)
    await archive.backup.full()
    await archive.ship(1)
    assert await archive.bad() == {}
    await archive.backup.incremental()
    assert await archive.bad() == {}
    assert not torn((await archive.vault.backups()).backups)


async def test_what_one_target_lacks_the_next_heal_copies(two: Archive) -> None:
    names = await two.names()
    tip = next(name for name in names if name.endswith("tip"))
    victims = [shipped(names)[1], parts(names)[0], "owner", *(n for n in names if n.startswith(("fulls", "incr")))]
    for name in victims:
        await two.lose(name, of="two")
    bad = await two.bad()
    assert sorted(bad) == sorted(f"two: {name}" for name in victims)
    assert all("one has it; the next heal copies it" in why for why in bad.values())
    await two.lose(tip, of="one")
    two.vault.suspect()
    await two.vault.heal()
    assert await two.bad() == {}


async def test_a_target_that_does_not_answer_is_named_and_the_other_is_read(two: Archive) -> None:
    (two.root / "two").rename(two.root / "elsewhere")
    found = await verify_archive(two.vault, clock=two.clock)
    assert list(found.bad) == ["two"]
    assert "does not answer" in found.bad["two"]
    assert "mount it" in found.bad["two"]
    assert found.objects > 10
    victim = shipped(await two.names())[0]
    (two.root / "one" / victim).write_bytes(b"noise")
    assert list(await two.bad()) == ["two", f"one: {victim}"]
    [*_, last] = await ids(two, "incremental")
    assert list((await verify_backup(two.vault, last)).bad) == ["two"]
    (two.root / "one").rename(two.root / "nowhere")
    with pytest.raises(Unavailable):
        await two.bad()


async def test_whose_archive_it_is_cannot_be_known_of_an_empty_target_beside_one_that_is_away(tmp_path: Path) -> None:
    made = Archive(tmp_path, second=True)
    assert await made.vault.owner() is None
    (made.root / "two").rmdir()
    with pytest.raises(Unavailable, match="cannot be known, so nothing is written: two does not answer") as raised:
        await made.vault.owner()
    assert "leave it out" in str(raised.value.hint)
    await made.vault.put_owner("me")
    assert await made.vault.owner() == "me"
    await made.ledger.aclose()


async def test_what_each_of_two_targets_lacks_is_named_for_each(two: Archive) -> None:
    [first, second, *_] = shipped(await two.names())
    await two.lose(first, of="one")
    await two.lose(second, of="two")
    assert sorted(await two.bad()) == [f"one: {first}", f"two: {second}"]
    await two.lose(first, of="two")
    assert sorted(await two.bad())[1:] == [f"two: {second}"]
    assert len(await two.bad()) == 2


async def test_what_is_written_meanwhile_makes_nothing_look_lost(two: Archive) -> None:
    """Each step of verifying is followed by one of whoever writes to the archive."""
    writing = asyncio.Lock()
    turn = 0

    class Busy(Objects):
        async def get(self, name: str) -> bytes:
            await someone()
            return await super().get(name)

        async def list(self, prefix: str) -> list:  # type: ignore[type-arg]
            found = await super().list(prefix)
            await someone()
            return list(found)

    async def someone() -> None:
        nonlocal turn
        if writing.locked():
            return
        async with writing:
            turn += 1
            if turn % 7 == 0:
                await two.ship(1)
            if turn % 23 == 0:
                await two.backup.incremental()
            if turn % 31 == 0:
                await two.backup.full()

    for _ in range(5):
        for name in two.targets:
            two.targets[name] = Busy(f"file://{two.root / name}")
        assert await two.bad() == {}
    assert turn > 100


@pytest.mark.parametrize("again", [Keep(), Keep(400.0, 400.0)], ids=["as before", "longer"])
async def test_what_was_pruned_is_not_lost(archive: Archive, again: Keep) -> None:
    await archive.clock.advance(2 * DAY_S)
    await archive.backup.full()
    await archive.ship(2)
    gone = await archive.prune(Keep(full_days=1.0, incremental_days=1.0))
    assert len(gone.backups) == 4, "earlier than the manifests say"
    assert await archive.bad() == {}
    archive.keep = again
    archive.remake()
    await archive.backup.incremental()
    assert await archive.bad() == {}
    await archive.clock.advance(31 * DAY_S)
    await archive.backup.full()
    await archive.prune(Keep(full_days=1.0, incremental_days=1.0))
    assert await archive.bad() == {}
    assert len([name for name in await archive.names() if name.startswith("pruned/")]) <= 1


async def test_what_was_never_gathered_and_is_pruned_is_not_lost(archive: Archive) -> None:
    await archive.clock.advance(31 * DAY_S)
    await archive.backup.full()
    await archive.ship(1)
    assert [name for name in (await archive.prune(Keep())).names if name.startswith("sends/") and "-all-" not in name]
    assert await archive.bad() == {}
    await archive.backup.incremental()
    await archive.clock.advance(31 * DAY_S)
    await archive.ship(1)
    assert await archive.bad() == {}


async def test_a_manifest_that_cannot_be_read_is_named_as_that_alone(archive: Archive) -> None:
    [*_, last] = await ids(archive, "full")
    path = archive.root / "one" / manifest_name("full", last)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    await archive.backup.incremental()
    assert list(await archive.bad()) == [f"one: {manifest_name('full', last)}"]
    path.write_bytes(whole)
    assert await archive.bad() == {}
    await archive.lose(f"fulls/{last}/")
    assert manifest_name("full", last) in await archive.bad()


async def test_one_backup_and_what_it_needs(archive: Archive) -> None:
    first, second = await ids(archive, "incremental")
    full, later = await ids(archive, "full")
    assert (await verify_backup(archive.vault, second)).bad == {}
    [part] = [one for one in await archive.names() if one.startswith(f"fulls/{later}/ledger")]
    await archive.lose(part)
    assert list((await verify_backup(archive.vault, second)).bad) == [f"one: {part}"]
    assert (await verify_backup(archive.vault, first)).bad == {}
    await archive.lose(f"fulls/{later}/")
    assert (await verify_backup(archive.vault, second)).bad == {}, "the first full leads to it as well"
    await archive.lose(f"incrementals/{first}/")
    assert any("changes are missing" in why for why in (await verify_backup(archive.vault, second)).bad.values())
    assert (await verify_backup(archive.vault, full)).bad == {}
    await archive.lose("fulls/")
    assert any("no full copy" in why for why in (await verify_backup(archive.vault, second)).bad.values())
    with pytest.raises(NotFound):
        await verify_backup(archive.vault, full)


# Damage.


def spoil(archive: Archive, name: str, how: str) -> None:
    for target in archive.targets:
        path = archive.root / target / name
        data = bytearray(path.read_bytes())
        data[{"head": 5, "middle": len(data) // 2, "end": -1}[how]] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["head", "middle", "end"])
@pytest.mark.parametrize("which", [0, 1, 3], ids=["first", "middle", "last"])
async def test_one_damaged_object_parts_what_is_gathered_and_stops_nothing(two: Archive, which: int, how: str) -> None:
    names = await two.names()
    changes, sent = shipped(names)[which], parts(names)[which]
    for name in (changes, sent):
        spoil(two, name, how)
    await two.clock.advance(1)
    taken = await two.backup.incremental()
    assert taken is not None
    assert len(taken.sources) == (2 if which == 1 else 1)
    told = [fields["object"] for name, fields in two.telemetry.events if name == "backup_object_damaged"]
    assert told == [changes, sent]
    left = await two.names()
    assert [*shipped(left), *parts(left)] == [changes, sent]
    [gathered] = [one.name for one in taken.sends]
    assert len(decode_sends(await two.vault.get(gathered))) == 3
    assert sorted(await two.bad()) == sorted(f"{t}: {name}" for t in ("one", "two") for name in (changes, sent))
    assert torn((await two.vault.backups()).backups)
    await two.backup.full()
    assert not torn((await two.vault.backups()).backups)
    for _ in range(2):
        await two.ship(2)
        assert (await two.restore(None, f"r-{len(two.history)}"))[1] == two.history[-1][1]
        assert await two.backup.incremental() is not None
        await two.clock.advance(1)
        assert not torn((await two.vault.backups()).backups), "not again because of the same"
    await two.backup.incremental()
    assert await two.backup.incremental() is None
    assert len([one for one, _ in two.telemetry.events if one == "backup_object_damaged"]) == 2, "told once"
    await two.lose(changes, sent)
    assert len(await two.bad()) == 2, "somebody who takes it away does not bring back what it held"


async def test_damage_is_found_though_nothing_else_is_there_to_gather(archive: Archive) -> None:
    await archive.backup.incremental()
    await archive.ship(1)
    spoil(archive, shipped(await archive.names())[0], "end")
    await archive.lose(parts(await archive.names())[0])
    assert await archive.backup.incremental() is not None
    assert torn((await archive.vault.backups()).backups)
    await archive.backup.full()
    assert await archive.backup.incremental() is None


async def test_what_is_whole_again_is_gathered(two: Archive) -> None:
    name = shipped(await two.names())[1]
    whole = (two.root / "one" / name).read_bytes()
    spoil(two, name, "middle")
    await two.backup.incremental()
    (two.root / "two" / name).write_bytes(whole)
    await two.ship(1)
    await two.backup.incremental()
    assert await two.bad() == {}
    assert not torn((await two.vault.backups()).backups)
    assert (await two.restore(None))[1] == two.history[-1][1]


@pytest.mark.parametrize(
    "name",
    [
        "log/README",
        "log/ledger/notes.txt",
        "log/ledger/x/²-³",
        "log/ledger/x/00000000000000000001-00000000000000000009",
        "log/ledger/x/9-5",
        "log/ledger/x/tip",
        "log/a/b/c/d",
        "log/tip",
        "log/a/b/c/tip",
        "sends/README",
        "sends/1-x",
        "sends/²-x-1",
        "sends/000001764000000-x-00000000000000000001",
        "pruned/README",
        "pruned/000009999999999-000001764000000",
        "log/ledger/TL/00000000000000000001-00000000000000000002",
        "sends/-",
    ],
)
async def test_what_somebody_put_there_by_hand_stops_nothing(archive: Archive, name: str) -> None:
    timeline = shipped(await archive.names())[0].split("/")[2]
    path = archive.root / "one" / name.replace("TL", timeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    for _ in range(2):
        assert await archive.backup.incremental() is not None
        await archive.bad()
        await archive.ship(1)
        await archive.prune(Keep())
        assert (await archive.restore(None, f"r-{len(archive.history)}"))[1] == archive.history[-1][1]


FOREIGN = [".DS_Store", "notes.txt", "tip", "manifest", "a/b/c/tip", "1-x", "000000000000001-x-1", "-"]


async def test_what_has_no_name_of_ours_is_neither_read_nor_compared_nor_copied_nor_pruned(two: Archive) -> None:
    names = [f"{folder}/{name}" for folder in ("log", "sends", "ended", "pruned", "fulls") for name in FOREIGN]
    for name in names:
        path = two.root / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    assert await two.bad() == {}
    two.vault.suspect()
    assert await two.vault.heal() == 0
    await two.prune(Keep(0.001, 0.001))
    assert await two.bad() == {}
    assert [name for name in names if (two.root / "one" / name).exists()] == names
    assert not [name for name in names if (two.root / "two" / name).exists()]
    await two.restore(None)


async def test_a_damaged_tip_of_a_timeline_that_has_ended_stops_nothing(archive: Archive) -> None:
    [tip] = [name for name in await archive.names() if name.endswith("/tip")]
    spoil(archive, tip, "end")
    assert not await archive.backup.ship()
    await archive.backup.full()
    await archive.ship(1)
    assert await archive.backup.incremental() is not None
    assert list(await archive.bad()) == [f"one: {tip}"]
