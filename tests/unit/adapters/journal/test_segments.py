"""What the disk has after a crash at any byte, and what of it is believed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellbuoy.adapters.journal.segments import SegmentLog

ENTRIES = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=8)


def contents(folder: Path) -> list[bytes]:
    log = SegmentLog(folder, segment_bytes=100)
    try:
        return [entry.data for entry in log.read(10_000)]
    finally:
        log.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


@settings(max_examples=150, deadline=None)
@given(batches=ENTRIES, last=st.lists(st.binary(max_size=40), min_size=1, max_size=3), data=st.data())
def test_a_crash_at_any_byte_leaves_what_was_confirmed(
    batches: list[list[bytes]], last: list[bytes], data: st.DataObject
) -> None:
    """The last write was not confirmed: any beginning of it may be on the disk, with or without rubbish behind."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "journal"
        log = SegmentLog(folder, segment_bytes=100)
        for batch in batches:
            log.append(batch)
        before = {path: path.stat().st_size for path in files(folder)}
        log.append(last)
        log.close()
        [*_, tail] = files(folder)
        kept = data.draw(st.integers(before.get(tail, 0), tail.stat().st_size))
        os.truncate(tail, kept)
        with tail.open("ab") as file:
            file.write(data.draw(st.sampled_from([b"", b"\0" * 30, b"\xff" * 30])))
        confirmed = [entry for batch in batches for entry in batch]
        found = contents(folder)
        assert found[: len(confirmed)] == confirmed
        assert found[len(confirmed) :] == last[: len(found) - len(confirmed)]
        log = SegmentLog(folder, segment_bytes=100)
        assert log.damaged == 0
        log.append([b"after"])
        log.close()
        assert contents(folder) == [*found, b"after"]


@settings(max_examples=100, deadline=None)
@given(batches=ENTRIES, taken=st.integers(0, 40))
def test_what_is_taken_off_does_not_come_back(batches: list[list[bytes]], taken: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "journal"
        log = SegmentLog(folder, segment_bytes=100)
        for batch in batches:
            log.append(batch)
        everything = [entry for batch in batches for entry in batch]
        log.take_off(taken)
        assert log.pending == max(0, len(everything) - taken)
        log.close()
        assert contents(folder) == everything[taken:]
        log = SegmentLog(folder, segment_bytes=100)
        number = log.append([b"next"])
        assert number == len(everything) + 1
        log.take_off(number)
        assert log.pending == 0
        assert log.bytes_used <= 200
        log.close()


@pytest.mark.parametrize("before", [1, 7], ids=["data", "length"])
def test_damage_in_the_middle_is_counted_and_the_rest_is_read(tmp_path: Path, before: int) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder)
    log.append([b"one", b"two", b"three"])
    log.close()
    [path] = files(folder)
    data = bytearray(path.read_bytes())
    data[data.index(b"two") + 1 - before] ^= 1
    path.write_bytes(data)
    log = SegmentLog(folder)
    assert [(e.number, e.data) for e in log.read(10)] == [(1, b"one"), (3, b"three")]
    assert log.damaged == 1
    log.close()


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.binary(min_size=1, max_size=40), min_size=3, max_size=30),
    spoilt=st.sets(st.integers(0, 28), min_size=1),
    data=st.data(),
)
def test_whichever_entries_are_damaged_all_others_are_read(
    entries: list[bytes], spoilt: set[int], data: st.DataObject
) -> None:
    """A byte of each is another one. Of the last entry alone nobody can say whether it was ever whole."""
    spoilt = {at for at in spoilt if at < len(entries) - 1}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "journal"
        log = SegmentLog(folder)
        log.append(entries)
        log.close()
        [path] = files(folder)
        written, at = bytearray(path.read_bytes()), 0
        for n, entry in enumerate(entries):
            if n in spoilt:
                byte = at + data.draw(st.integers(0, 7 + len(entry)))
                written[byte] ^= data.draw(st.integers(1, 255))
            at += 8 + len(entry)
        path.write_bytes(written)
        log = SegmentLog(folder)
        sound = [(n + 1, entry) for n, entry in enumerate(entries) if n not in spoilt]
        assert [(one.number, one.data) for one in log.read(100)] == sound
        assert log.damaged == len(spoilt)
        log.take_off(len(entries))
        assert [one.read_bytes() for one in log.kept] == [bytes(written)] * bool(spoilt), "it is kept for a person"
        assert log.append([b"next"]) == len(entries) + 1
        log.close()


def test_a_page_of_noise_does_not_take_along_what_is_behind_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    entries = [bytes([n % 256]) * 150 for n in range(200)]
    log = SegmentLog(folder)
    log.append(entries)
    log.close()
    [path] = files(folder)
    written = bytearray(path.read_bytes())
    written[8192:12288] = Random(1).randbytes(4096)
    path.write_bytes(written)
    log = SegmentLog(folder)
    size = 8 + 150
    assert [one.number - 1 for one in log.read(300)] == [
        n for n in range(200) if (n + 1) * size <= 8192 or n * size >= 12288
    ]
    log.close()


def test_damage_at_a_segment_s_end_is_counted_when_another_follows(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder, segment_bytes=20)
    log.append([b"one", b"two"])
    log.append([b"three"])
    log.close()
    path, _ = files(folder)
    os.truncate(path, path.stat().st_size - 1)
    log = SegmentLog(folder)
    assert [e.data for e in log.read(10)] == [b"one", b"three"]
    assert log.damaged == 1
    log.close()


def test_an_entry_in_the_wrong_place_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder, segment_bytes=1)
    log.append([b"one"])
    log.append([b"two"])
    log.close()
    first, second = files(folder)
    shutil.copy(second, first)
    log = SegmentLog(folder)
    assert [e.data for e in log.read(10)] == [b"two"]
    log.close()


def test_a_damaged_mark_repeats_rather_than_loses(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder)
    log.append([b"one", b"two"])
    log.take_off(1)
    log.close()
    (folder / "taken").write_bytes(b"\xff" * 12)
    log = SegmentLog(folder)
    assert [e.data for e in log.read(10)] == [b"one", b"two"]
    assert log.damaged == 1
    log.close()


def test_after_a_failed_sync_another_segment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder)
    log.append([b"one"])
    with monkeypatch.context() as patch:

        def fail(_fd: int) -> None:
            raise OSError(errno.EIO, "the disk failed")

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="the disk failed"):
            log.append([b"lost"])
    assert [e.data for e in log.read(10)] == [b"one"]
    assert log.append([b"two"]) == 2
    assert len(files(folder)) == 2
    log.close()
    assert contents(folder) == [b"one", b"two"]


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    log = SegmentLog(folder)
    log.append([b"one"])
    log.take_off(1)
    log.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
