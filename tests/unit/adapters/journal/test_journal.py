"""The journal as its callers see it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bellbuoy.adapters.journal import FileJournal
from bellbuoy.errors import ConfigurationError, Full


async def test_many_callers_share_a_sync_and_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    sync = os.fdatasync

    def counted(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    journal = FileJournal(tmp_path / "journal")
    numbers = await asyncio.gather(*(journal.append(str(n).encode()) for n in range(1_000)))
    assert numbers == list(range(1, 1_001))
    assert syncs < 10
    assert [int(e.data) for e in await journal.read(limit=5_000)] == list(range(1_000))
    assert journal.state().pending == 1_000
    await journal.take_off(990)
    assert [e.number for e in await journal.read(limit=3)] == [991, 992, 993]
    await journal.aclose()
    await journal.aclose()
    journal = FileJournal(tmp_path / "journal")
    assert journal.state().pending == 10
    await journal.aclose()


async def test_it_is_bounded_and_empties(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", bytes_max=10_000, segment_bytes=1_000)
    numbers = await asyncio.gather(*(journal.append(bytes(500)) for _ in range(15)))
    taken = max(numbers)
    while journal.state().bytes_used + 500 <= 10_000:
        taken = await journal.append(bytes(500))
    with pytest.raises(Full):
        await journal.append(bytes(500))
    await journal.take_off(taken)
    assert journal.state().pending == 0
    await journal.append(bytes(500))
    await journal.aclose()
    with pytest.raises(Full):
        await journal.append(b"too late")


async def test_an_entry_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    with pytest.raises(Full):
        await journal.append(bytes(2 * 1024 * 1024))
    assert journal.state().pending == 0
    await journal.aclose()


async def test_a_failing_disk_refuses_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal(tmp_path / "journal")

    def fail(*_: object) -> int:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(Full) as caught:
            await journal.append(b"one")
        assert caught.value.retry_after_s
    assert await journal.append(b"two") == 1
    assert [e.data for e in await journal.read(limit=9)] == [b"two"]
    await journal.aclose()


async def test_a_cancelled_caller_harms_nobody(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    doomed = asyncio.create_task(journal.append(b"one"))
    other = asyncio.create_task(journal.append(b"two"))
    await asyncio.sleep(0)
    doomed.cancel()
    assert await other == 2
    await journal.aclose()


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        FileJournal(tmp_path / "file" / "journal")
    assert "[data] dir" in (caught.value.hint or "")
