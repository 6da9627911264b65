"""One suite for operators' values over every control store: what `bellbuoy.ports.values` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.control_values import ControlValues
from bellbuoy.adapters.mongodb import MongoLedger
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict
from bellbuoy.model.change import VERSIONS_MAX, Figures, Valued, changed
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.values import VALUES_MAX, Values


@pytest.fixture(params=["sqlite", "mongodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ControlStore]:
    if request.param == "mongodb":
        ledger = MongoLedger(request.getfixturevalue("mongodb_url"), clock=ManualClock())
        yield ledger.control
        await ledger.aclose()
        return
    found = SqliteControlStore(tmp_path / "control.db", clock=ManualClock())
    yield found
    await found.aclose()


@pytest.fixture
def values(store: ControlStore) -> Values:
    return ControlValues(store)


def to(value: Any, **more: Any) -> Any:
    return lambda valued: changed(valued, value, at=1.5, by="k", watched=True, **more)


async def test_what_was_never_changed_has_no_version(values: Values) -> None:
    assert await values.find("flag", "f") == Valued("f")
    assert await values.all("flag") == []


async def test_versions_come_back_as_they_were_written(values: Values) -> None:
    before = {"fcm": Figures(100, 3, 0.25), "ledger": Figures(5, 0, None)}
    written = await values.change("setting", "retry.max_attempts", to(5, before=before))
    assert await values.find("setting", "retry.max_attempts") == written
    again = await values.change("setting", "retry.max_attempts", to(None))
    assert [one.value for one in again.versions] == [5, None]
    assert [one.status for one in again.versions] == ["superseded", "watched"]
    assert await values.all("setting") == [again]
    assert await values.all("flag") == await values.all("template") == []


async def test_other_documents_of_a_kind_are_none_of_them(values: Values, store: ControlStore) -> None:
    await store.write("setting", "pins", b'{"read_only": true}', version=0)
    await values.change("setting", "a", to(1))
    assert [one.name for one in await values.all("setting")] == ["a"]


async def test_of_many_who_change_one_at_once_none_is_lost(values: Values) -> None:
    await asyncio.gather(*(values.change("flag", "f", to(n)) for n in range(4)))
    found = await values.find("flag", "f")
    assert sorted(one.value for one in found.versions) == [0, 1, 2, 3]
    assert [one.n for one in found.versions] == [1, 2, 3, 4]


async def test_what_raises_changes_nothing(values: Values) -> None:
    await values.change("flag", "f", to(True))

    def no(valued: Valued) -> Valued:
        raise Conflict("no")

    with pytest.raises(Conflict):
        await values.change("flag", "f", no)
    assert len((await values.find("flag", "f")).versions) == 1


async def test_history_is_bounded_and_so_is_its_size(values: Values) -> None:
    for n in range(VERSIONS_MAX + 3):
        await values.change("flag", "f", to(n))
    assert [one.n for one in (await values.find("flag", "f")).versions] == list(range(4, VERSIONS_MAX + 4))
    for n in range(5):
        await values.change("template", "t", to(f"{n}" * 60_000))
    kept = (await values.find("template", "t")).versions
    assert kept[-1].value == "4" * 60_000
    assert len(kept) >= 2, "what the last one would go back to"


async def test_there_is_a_most_of_them(tmp_path: Path) -> None:
    store = SqliteControlStore(tmp_path / "control.db", clock=ManualClock(), inline=True)
    values = ControlValues(store)
    for n in range(VALUES_MAX):
        await values.change("flag", f"f{n}", to(True))
    with pytest.raises(Conflict):
        await values.change("flag", "one-more", to(True))
    await values.change("flag", "f0", to(False))
    await store.aclose()
