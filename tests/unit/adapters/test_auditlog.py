"""The audit log on the disk: what a crash, a full disk and time do to a chain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellbuoy.adapters.evidence import FileSigner, is_signed
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.breach import chains
from bellbuoy.continuity.breach.chains import Checked
from bellbuoy.errors import ConfigurationError, Full
from bellbuoy.model.audit import Head
from bellbuoy.service.drills.small_disk import fill
from tests.support.audit import contents, entry, files, litter, log_in


def check(folder: Path, *heads: Head) -> Checked:
    return chains.check(files(contents(folder)), heads)


async def test_it_goes_on_after_a_restart_and_after_a_crash_that_tore_the_last_line(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    log = log_in(folder)
    await log.append([entry(1), entry(2)])
    await log.aclose()
    (path,) = folder.glob("*.log")
    with path.open("ab") as file:
        file.write(b"0123456789abcdef")
    log = log_in(folder)
    await log.append([entry(3)])
    await log.aclose()
    checked = check(folder, log.head)
    assert (checked.findings, checked.chains[0].last) == ([], 4)
    found = list(chains.entries(files(contents(folder))))
    assert [(one.n, one.action, one.count) for one in found][2] == (3, "torn", 16)


async def test_an_edit_before_a_restart_is_found_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    log = log_in(folder)
    await log.append([entry(1), entry(2)])
    await log.aclose()
    (path,) = folder.glob("*.log")
    path.write_bytes(path.read_bytes().replace(b'"k0"', b'"k1"'))
    log = log_in(folder)
    await log.append([entry(3)])
    await log.aclose()
    assert [one.entry for one in check(folder).findings] == [2]


async def test_what_is_too_old_is_forgotten_by_whole_segments_and_the_log_says_so(tmp_path: Path) -> None:
    folder, clock = tmp_path / "0", ManualClock()
    log = log_in(folder, clock, segment_s=86_400.0)
    for n in range(5):
        await log.append([entry(n)])
        clock.jump(86_400.0)
    assert await log.forget(await log.older(clock.time() - 3.5 * 86_400.0)) == 1
    assert await log.forget(await log.older(clock.time() - 3.5 * 86_400.0)) == 0
    await log.aclose()
    checked = check(folder, log.head)
    assert (checked.findings, checked.chains[0].first) == ([], 2)
    # Whoever removes more than that is found out.
    min(folder.glob("*.log")).unlink()
    assert "at the beginning are missing" in check(folder).findings[0].what


async def test_a_full_disk_refuses_and_leaves_nothing_half(disk: Path) -> None:
    folder = disk / "0"
    log = log_in(folder)
    await log.append([entry(1)])
    fill(disk / "rest")
    with pytest.raises(Full):
        await log.append([entry(n, users={f"user-{n}-{m}": 1 for m in range(900)}) for n in range(2, 20)])
    (disk / "rest").unlink()
    await log.append([entry(2)])
    await log.aclose()
    checked = check(folder, log.head)
    assert (checked.findings, checked.chains[0].last) == ([], 2)


@pytest.mark.timeout(20)
async def test_what_only_has_the_name_of_a_segment_keeps_no_service_from_writing(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    log = log_in(folder)
    await log.append([entry(1)])
    await log.aclose()
    litter(folder)
    log = log_in(folder)
    await log.append([entry(2)])
    await log.forget(await log.older(2_000_000_000.0))
    await log.aclose()
    assert (log.head.n, len([path for path in folder.glob("*.log") if path.is_file()])) == (2, 2)
    # Where the very name that comes next is taken, what is to be written is refused, and waits for nobody.
    os.mkfifo(folder / f"{3:020}.log")
    log = log_in(folder, segment_bytes=1)
    with pytest.raises(Full):
        await log.append([entry(3)])
    await log.aclose()


async def test_it_says_why_it_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        log_in(tmp_path / "0")


def test_a_key_is_made_once_for_its_owner_alone_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "evidence.key"
    signer = FileSigner(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    signature = signer.sign(b"data")
    assert is_signed(FileSigner(path).public, signature, b"data")
    assert not is_signed(signer.public, signature, b"date")
    assert not is_signed("no key", signature, b"data")
    path.write_text("nothing")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        FileSigner(path)
