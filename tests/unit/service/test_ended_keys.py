"""Keys that ended are kept beside the backups: a restore to an earlier second brings none of them back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.backup import silent
from bellbuoy.continuity.retention import DAY_S
from bellbuoy.continuity.verify import verify_archive
from bellbuoy.errors import ConfigurationError, Damaged
from bellbuoy.model.operation import SCOPES, ApiKey
from bellbuoy.service.keys import Keys
from bellbuoy.service.restoring import Report, restore_into
from tests.unit.service.test_continuity import Process

BEGAN = 1_800_064_800.0


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    made = Process(tmp_path, "one", ManualClock(epoch_s=BEGAN))
    yield made
    await made.aclose()


def ended(root: Path) -> list[Path]:
    return sorted((root / "archive" / "ended").glob("*")) if (root / "archive" / "ended").exists() else []


async def restored(
    process: Process, to: Path, *, at: float | None = None, without: tuple[str, ...] = (), force: bool = False
) -> Report:
    return await restore_into(
        process.settings,
        to,
        at=at,
        backup=None,
        force=force,
        without=without,
        clock=process.clock,
        telemetry=process.telemetry,
        progress=silent,
    )


async def keys_of(to: Path, clock: ManualClock) -> dict[str, ApiKey]:
    ledger = SqliteLedger(to / "bellbuoy.db", clock=clock)
    try:
        return {key.id: key for key in await ledger.keys()}
    finally:
        await ledger.aclose()


async def test_a_restore_to_before_a_theft_brings_no_stolen_key_back(process: Process, tmp_path: Path) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    stolen, _ = await keys.create("stolen", SCOPES)
    kept, _ = await keys.create("kept", SCOPES)
    await process.step()
    assert ended(tmp_path) == []
    await process.clock.advance(60.0)
    later, _ = await keys.create("made later", SCOPES)
    for one in (stolen.id, later.id):
        await keys.revoke(one)
    await process.step()
    assert len(ended(tmp_path)) == 1
    await process.step()
    assert len(ended(tmp_path)) == 1
    report = await restored(process, tmp_path / "side", at=BEGAN + 1)
    assert report.ended_keys == 1
    found = await keys_of(tmp_path / "side", process.clock)
    assert found[stolen.id].revoked_at == found[later.id].revoked_at == BEGAN + 60
    assert found[kept.id].revoked_at is None
    assert (await restored(process, tmp_path / "newest")).ended_keys == 0


async def test_a_bootstrap_key_that_ended_stays_so_behind_another(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    secrets = [f"bootstrap-key-number-{n}-of-some" for n in range(3)]
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", secrets[0])
    await keys.bootstrap(tmp_path)
    await process.step()
    await process.clock.advance(60.0)
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", secrets[1])
    await keys.bootstrap(tmp_path)
    await keys.revoke("bootstrap")
    await process.step()
    await restored(process, tmp_path / "side", at=BEGAN + 1)
    ledger = SqliteLedger(tmp_path / "side" / "bellbuoy.db", clock=process.clock)
    again = Keys(ledger, clock=process.clock)
    with pytest.raises(ConfigurationError, match="has ended"):
        await again.bootstrap(tmp_path)
    # The one before it was replaced and never ended: it is what the restored ledger had.
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", secrets[0])
    await again.bootstrap(tmp_path)
    await again.load()
    assert again.find(secrets[0].encode()) is not None
    await ledger.aclose()


async def test_what_is_lost_or_damaged_of_them_is_named(process: Process, tmp_path: Path) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    first, _ = await keys.create("first", SCOPES)
    await process.step()
    await process.clock.advance(60.0)
    await keys.revoke(first.id)
    await process.step()
    await process.accept("n")
    await process.loop.keeper.take("full")
    assert (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad == {}
    path = ended(tmp_path)[0]
    name, sound = f"ended/{path.name}", path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    bad = (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad
    assert [one for one in bad if name in one]
    with pytest.raises(Damaged) as raised:
        await restored(process, tmp_path / "side", at=BEGAN + 1)
    assert f"--without {name}" in str(raised.value.hint)
    assert not (tmp_path / "side").exists()
    with pytest.raises(ConfigurationError, match="there is no object"):
        await restored(process, tmp_path / "side", at=BEGAN + 1, without=(f"ended/{0:012}-{name[-16:]}",))
    report = await restored(process, tmp_path / "side", at=BEGAN + 1, without=(name,))
    assert (report.ended_keys, report.absent_sends, report.absent_ended) == (0, [], [name])
    path.unlink()
    assert name in (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad
    assert (await restored(process, tmp_path / "again", at=BEGAN + 1)).absent_ended == [name]


async def test_a_replaced_key_that_ended_stays_so_when_it_was_only_replaced_at_that_second(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    for secret in ("the-first-key-of-24-characters", "the-second-key-of-24-characters"):
        monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", secret)
        await keys.bootstrap(tmp_path)
    await process.step()
    await process.clock.advance(60.0)
    (aside,) = [key for key in await keys.all() if key.replaced]
    await keys.revoke(aside.id)
    await process.step()
    assert (await restored(process, tmp_path / "side", at=BEGAN + 1)).ended_keys == 1
    assert (await keys_of(tmp_path / "side", process.clock))[aside.id].has_ended
    ledger = SqliteLedger(tmp_path / "side" / "bellbuoy.db", clock=process.clock)
    monkeypatch.setenv("BELLBUOY_BOOTSTRAP_KEY", "the-first-key-of-24-characters")
    with pytest.raises(ConfigurationError, match="has ended"):
        await Keys(ledger, clock=process.clock).bootstrap(tmp_path)
    await ledger.aclose()


@pytest.mark.parametrize("back_s", [2 * 3600.0, 40 * DAY_S])
async def test_a_clock_that_was_back_for_a_moment_forgets_no_end(
    process: Process, tmp_path: Path, back_s: float
) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    key, _ = await keys.create("stolen", SCOPES)
    await process.step()
    await process.clock.advance(60.0)
    process.clock.jump(-back_s)
    await keys.revoke(key.id)
    await process.step()
    process.clock.jump(back_s)
    await process.accept("n")
    await process.loop.keeper.take("full")
    await process.loop.keeper.prune()
    await process.step()
    assert len(ended(tmp_path)) == 1
    await restored(process, tmp_path / "side", at=BEGAN + 1)
    assert (await keys_of(tmp_path / "side", process.clock))[key.id].has_ended
    assert (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad == {}


async def test_they_are_missed_for_as_long_as_a_backup_has_them_alive(process: Process, tmp_path: Path) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    key, _ = await keys.create("stolen", SCOPES)
    await process.step()
    await process.clock.advance(60.0)
    await keys.revoke(key.id)
    await process.step()
    for day in range(29):
        await process.accept(f"n{day}")
        await process.step()
        await process.clock.advance(DAY_S)
    (path,) = ended(tmp_path)
    path.unlink()
    bad = (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad
    assert f"ended/{path.name}" in bad


async def test_a_process_that_starts_ships_what_the_archive_does_not_know(process: Process, tmp_path: Path) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    for name in ("one", "two"):
        key, _ = await keys.create(name, SCOPES)
        await keys.revoke(key.id)
    await process.step()
    other = Process(tmp_path, "two", process.clock)
    await other.step()
    assert len(ended(tmp_path)) == 1
    await other.aclose()
    ended(tmp_path)[0].unlink()
    again = Process(tmp_path, "three", process.clock)
    await process.clock.advance(1.0)
    await again.step()
    assert len(ended(tmp_path)) == 1
    await again.aclose()


async def test_they_go_with_the_oldest_backup_that_knew_them_alive(process: Process, tmp_path: Path) -> None:
    keys = Keys(process.ledger, clock=process.clock)
    key, _ = await keys.create("one", SCOPES)
    await process.step()
    await process.clock.advance(1.0)
    await keys.revoke(key.id)
    await process.step()
    for day in range(35):
        assert day > 30 or len(ended(tmp_path)) == 1
        await process.clock.advance(DAY_S)
        await process.accept(f"n{day}")
        await process.step()
    assert ended(tmp_path) == []
    assert (await verify_archive(process.loop.keeper.vault, clock=process.clock)).bad == {}


def lose(folder: Path) -> None:
    """A target cannot be used: in the place of its folder is a link to itself."""
    folder.rename(folder.with_suffix(".away"))
    folder.symlink_to(folder)


def find(folder: Path) -> None:
    folder.unlink()
    folder.with_suffix(".away").rename(folder)


async def test_of_two_targets_that_were_away_in_turn_the_newest_backup_is_the_newest(tmp_path: Path) -> None:
    clock = ManualClock(epoch_s=BEGAN)
    one, two = tmp_path / "archive", tmp_path / "second"
    process = Process(tmp_path, "one", clock, second_url=f"file://{two}")
    keys = Keys(process.ledger, clock=clock)
    key, _ = await keys.create("stolen", SCOPES)
    await process.step()

    async def taken_without(away: Path, number: int) -> None:
        """As a command does: each time by a process that knows only what it finds."""
        lose(away)
        await process.accept(f"n{number}")
        again = Process(tmp_path, f"command {number}", clock, second_url=f"file://{two}")
        taken = await again.loop.keeper.take("full")
        assert taken is not None
        assert taken.number == number
        await again.aclose()
        await clock.advance(60.0)
        find(away)

    for number in (2, 3):
        await taken_without(two, number)
    lose(one)
    await keys.revoke(key.id)
    await process.loop.keeper.ship()
    find(one)
    await taken_without(one, 4)
    process.loop.keeper.vault.suspect()
    await process.loop.keeper.vault.heal()
    assert [path.name[:12] for path in ended(tmp_path)] == [f"{3:012}"]
    newest = (await process.loop.keeper.vault.backups()).backups[-1]
    assert newest.number == 4
    assert (await restored(process, tmp_path / "side")).restored.backup == newest.id
    await process.aclose()


async def test_a_restore_in_place_keeps_what_only_the_ledger_that_makes_way_knows(tmp_path: Path) -> None:
    clock = ManualClock(epoch_s=BEGAN)
    process = Process(tmp_path, "one", clock)
    keys = Keys(process.ledger, clock=clock)
    key, _ = await keys.create("stolen", SCOPES)
    await process.step()
    await clock.advance(60.0)
    await keys.revoke(key.id)  # Nobody ships that any more.
    await process.aclose()
    place = process.settings.data.dir
    assert (await restored(process, place, at=BEGAN + 1, force=True)).ended_keys == 1
    assert (await keys_of(place, clock))[key.id].has_ended
    (place / "bellbuoy.db").write_bytes(b"noise" * 1000)
    report = await restored(process, place, at=BEGAN + 1, force=True)
    assert "cannot be read" in " ".join(report.absent_ended)
