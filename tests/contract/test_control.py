"""One suite for every control store: what `bellbuoy.ports.control` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.mongodb import MongoLedger
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict
from bellbuoy.ports.control import DOCUMENT_BYTES_MAX, ControlStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", "sqlite-inline", "mongodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlStore]:
    if request.param == "mongodb":
        ledger = MongoLedger(request.getfixturevalue("mongodb_url"), clock=clock)
        yield ledger.control
        await ledger.aclose()
        return
    found = SqliteControlStore(tmp_path / "control.db", clock=clock, inline=request.param == "sqlite-inline")
    yield found
    await found.aclose()


async def test_a_document_is_written_over_the_version_that_was_seen(store: ControlStore, clock: ManualClock) -> None:
    assert await store.read("flag", "f") is None
    first = await store.write("flag", "f", b"\x00one", version=0)
    assert (first.id, first.version, first.at, first.data) == ("f", 1, clock.time(), b"\x00one")
    await clock.advance(5.0)
    second = await store.write("flag", "f", b"two", version=1)
    assert await store.read("flag", "f") == second
    assert (second.version, second.at - first.at) == (2, 5.0)


@pytest.mark.parametrize("version", [0, 2, 7])
async def test_another_version_than_was_seen_is_a_conflict(store: ControlStore, version: int) -> None:
    await store.write("flag", "f", b"one", version=0)
    with pytest.raises(Conflict):
        await store.write("flag", "f", b"other", version=version)
    found = await store.read("flag", "f")
    assert found is not None
    assert found.data == b"one"


async def test_a_document_that_is_gone_cannot_be_written_over(store: ControlStore) -> None:
    await store.write("lease", "l", b"one", version=0)
    await store.delete("lease", "l", version=1)
    assert await store.read("lease", "l") is None
    with pytest.raises(Conflict):
        await store.write("lease", "l", b"two", version=1)
    await store.delete("lease", "l", version=1)


async def test_deleting_another_version_is_a_conflict(store: ControlStore) -> None:
    await store.write("lease", "l", b"one", version=0)
    with pytest.raises(Conflict):
        await store.delete("lease", "l", version=2)
    assert await store.read("lease", "l") is not None


async def test_of_many_that_write_at_once_one_succeeds(store: ControlStore) -> None:
    for version in range(3):
        results = await asyncio.gather(
            *(store.write("lease", "l", f"{version}-{n}".encode(), version=version) for n in range(8)),
            return_exceptions=True,
        )
        won = [one for one in results if not isinstance(one, BaseException)]
        assert len(won) == 1
        assert all(isinstance(one, Conflict) for one in results if isinstance(one, BaseException))
        assert await store.read("lease", "l") == won[0]


async def test_pages_hold_one_kind_newest_first(store: ControlStore, clock: ManualClock) -> None:
    for name in ("a", "b", "c"):
        await store.write("incident", name, name.encode(), version=0)
        await clock.advance(1.0)
    await store.write("incident", "a", b"again", version=1)
    await store.write("saga", "a", b"other", version=0)
    assert [(one.id, one.data) for one in await store.page("incident", limit=2)] == [("a", b"again"), ("c", b"c")]
    assert [one.id for one in await store.page("incident", limit=9)] == ["a", "c", "b"]
    assert await store.page("alert", limit=9) == []


async def test_a_document_has_a_largest_size(store: ControlStore) -> None:
    await store.write("template", "t", b"x" * DOCUMENT_BYTES_MAX, version=0)
    with pytest.raises(ValueError, match="at most"):
        await store.write("template", "t", b"x" * (DOCUMENT_BYTES_MAX + 1), version=1)


async def test_it_is_there_after_a_restart(tmp_path: Path, clock: ManualClock) -> None:
    store = SqliteControlStore(tmp_path / "control.db", clock=clock)
    written = await store.write("incident", "i", b"x", version=0)
    await store.aclose()
    other = SqliteControlStore(tmp_path / "control.db", clock=clock)
    assert await other.read("incident", "i") == written
    await other.aclose()


async def test_processes_of_one_machine_share_a_file(tmp_path: Path, clock: ManualClock) -> None:
    one, other = (SqliteControlStore(tmp_path / "control.db", clock=clock) for _ in range(2))
    await one.write("lease", "l", b"one", version=0)
    with pytest.raises(Conflict):
        await other.write("lease", "l", b"other", version=0)
    await other.write("lease", "l", b"other", version=1)
    with pytest.raises(Conflict):
        await one.write("lease", "l", b"one", version=1)
    await one.aclose()
    await other.aclose()
