"""What is typed wrongly under pressure is said so, with its cure, before anything is done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import SystemClock
from bellbuoy.continuity.drill import DrillReport
from bellbuoy.errors import BellbuoyError, ConfigurationError, Conflict, Damaged, NotFound, Unavailable
from bellbuoy.service.archive import hold_directory, new_key
from bellbuoy.service.cli import evidence
from bellbuoy.service.cli.app import main
from bellbuoy.service.cli.backup import (
    backup_full,
    backup_key,
    backup_list,
    backup_prune,
    backup_restore,
    backup_verify,
)
from bellbuoy.service.cli.doctor import examine
from bellbuoy.service.cli.drill import drill_run
from bellbuoy.service.drills import session
from bellbuoy.service.settings import Settings, with_overrides
from tests.support.audit import written


def test_a_second_of_no_year_that_there_is_is_refused(tmp_path: Path) -> None:
    for at in ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"):
        with pytest.raises(ConfigurationError, match="is no time"):
            backup_restore(to=tmp_path / "to", at=at, data_dir=tmp_path)


def test_an_error_is_a_document_where_json_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bellbuoy", "backup", "restore", "--to", str(tmp_path / "to"), "--at", "noon"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit, match="2"):
            main()
        out, err = capsys.readouterr()
        assert out == ""
        assert "noon is no time" in err
    assert json.loads(err)["error"]["code"] == "configuration"
    assert "2026-12-01T08:00:05Z" in json.loads(err)["error"]["hint"]


def test_a_second_and_a_full_backup_as_it_is_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no other second"):
        backup_restore(to=tmp_path / "to", at="2026-12-01T08:00:05Z", backup="some", data_dir=tmp_path)
    assert not (tmp_path / "to").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="cannot be written") as raised:
            hold_directory(folder, force=True)
        assert "--to" in str(raised.value.hint)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the target."""
    monkeypatch.setenv("BELLBUOY_BACKUP__URL", f"file://{tmp_path}/archive")
    return tmp_path / "archive"


def test_nothing_is_restored_among_the_backups(archive: Path, tmp_path: Path) -> None:
    archive.mkdir()
    (tmp_path / "link").symlink_to(archive)
    for folder in (archive, archive / "below", tmp_path / "link"):
        with pytest.raises(Conflict, match="where the backups are"):
            backup_restore(to=folder, data_dir=tmp_path / "data")
    assert list(archive.iterdir()) == []


def test_who_only_looks_makes_no_folder(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())

    def look() -> None:
        for command in (backup_list, backup_verify, backup_prune):
            with pytest.raises(Unavailable, match="is not there"):
                command(data_dir=data)
        with pytest.raises(Unavailable, match="is not there"):
            backup_restore(to=tmp_path / "to", data_dir=data)
        assert not archive.exists()

    look()
    backup_full(data_dir=data)
    assert archive.is_dir(), "the first backup makes it"
    archive.rename(tmp_path / "away")
    look()
    with pytest.raises(Unavailable, match="is not there") as raised:
        backup_full(data_dir=data)
    assert "mount it" in str(raised.value.hint)
    assert not archive.exists()


def test_a_target_that_is_a_link_to_itself_stops_no_other_command(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BELLBUOY_BACKUP__SECOND_URL", f"file://{tmp_path}/second")
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())
    backup_full(data_dir=data)
    shutil.rmtree(archive)
    archive.symlink_to(archive)
    backup_full(data_dir=data)
    backup_restore(to=tmp_path / "to", data_dir=data)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        backup_list(data_dir=data)
    assert "first: it does not answer" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(SystemExit, match="1"):
        backup_verify(data_dir=data)
    assert len(list((tmp_path / "second" / "fulls").iterdir())) == 2


def test_what_is_missing_does_not_keep_the_rest_from_being_proven(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())
    for _ in range(2):
        backup_full(data_dir=data)
    first, last = sorted((archive / "fulls").iterdir(), key=lambda one: (one / "manifest").stat().st_mtime_ns)

    def verify() -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="1"):
            backup_verify(data_dir=data)
        out, err = capsys.readouterr()
        return out, " ".join(err.split())

    (first / "configuration" / "settings.json.000000").unlink()
    out, err = verify()
    assert "1 bad or missing" in out
    assert "restored: 0 accepted, difference 0" in out
    assert "nothing was restored" not in err
    for part in (last / "ledger").iterdir():
        part.write_bytes(b"noise")
    out, err = verify()
    assert "2 bad or missing" in out
    assert "restored:" not in out
    assert "nothing was restored: fulls/" in err
    shutil.rmtree(archive)
    archive.mkdir()
    out, err = verify()
    assert "0 objects read, 2 bad or missing" in out
    assert "nothing was restored: there is no full backup" in err
    assert list(archive.iterdir()) == []


async def test_the_doctor_says_that_nothing_is_proven_and_that_a_folder_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = {"url": f"file://{tmp_path}/archive", "verify": False}
    settings = with_overrides(Settings(), {"data": {"dir": str(tmp_path)}, "backup": backup})
    await examine(settings, fix=False, as_json=True)
    found = {one["subject"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["backups"]["level"] == found["backups, first"]["level"] == "warning"
    assert "verify is off" in found["backups"]["finding"]
    assert "mount it" in found["backups, first"]["cure"]
    assert not (tmp_path / "archive").exists()


def test_an_empty_archive_is_said_to_be_empty(archive: Path, tmp_path: Path) -> None:
    archive.mkdir()
    with pytest.raises(NotFound, match="no full backup in the archive") as raised:
        backup_restore(to=tmp_path / "to", data_dir=tmp_path / "data")
    assert "[backup] url" in str(raised.value.hint)


def test_an_archive_without_its_key_is_not_said_to_be_empty(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setenv("BELLBUOY_BACKUP__KEY_FILE", str(keys))
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())
    for name in ("old", "new"):
        keys.touch(mode=0o600)
        keys.write_text(new_key(name))
        if name == "old":
            backup_full(data_dir=data)
    with pytest.raises(Damaged, match="sealed with the key old") as raised:
        backup_restore(to=tmp_path / "to", data_dir=data)
    assert "key_file" in str(raised.value.hint)


def test_an_archive_is_opened_with_what_a_command_prints(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "the keys"
    keys.write_text(new_key("k"))
    monkeypatch.setenv("BELLBUOY_BACKUP__KEY_COMMAND", f"cat '{keys}'")
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())
    backup_full(data_dir=data)
    backup_restore(to=tmp_path / "to", data_dir=data)
    assert all(b"\x01k" in path.read_bytes()[:8] for path in (archive / "fulls").rglob("*") if path.is_file())


def test_an_archive_is_proven_pruned_and_restored_without_a_ledger(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    asyncio.run(SqliteLedger(data / "bellbuoy.db", clock=SystemClock()).aclose())
    backup_full(data_dir=data)
    shutil.rmtree(data)
    for command in (backup_verify, backup_prune):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            command(data_dir=data)
        assert "there is no ledger" in capsys.readouterr().err
        assert not (data / "bellbuoy.db").exists()
    with pytest.raises(SystemExit, match="0"):
        backup_verify(data_dir=data)
    assert "restored: 0 accepted, difference 0; 0 compared" in capsys.readouterr().out
    backup_restore(to=data, data_dir=data)
    assert (data / "bellbuoy.db").exists()


def test_keys_of_one_day_have_ids_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        backup_key()
    first, second = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    assert first != second


@pytest.mark.parametrize("name", ["with space", "a#b", "-k", "k" * 65])
def test_a_key_gets_no_id_that_a_key_file_may_not_have(name: str) -> None:
    with pytest.raises(ConfigurationError, match="ID"):
        new_key(name)


def test_a_page_that_cannot_be_written_is_said_so_before_the_drill(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        drill_run(["fcm_outage"], html=tmp_path / "none" / "page.html", data_dir=tmp_path, url="http://127.0.0.1:1")


def test_what_a_drill_came_to_is_shown_although_its_record_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drills").touch()
    report = DrillReport(
        drill="fcm_outage",
        stack="alone",
        hypothesis="h",
        fault="f",
        by="me",
        started_at=1.0,
        result="passed",
        why="all holds",
        checks=[],
        counts={},
        phases=[],
        timeline=[],
    )
    monkeypatch.setattr(session, "run", lambda *_, done, **__: done(report) or True)
    with pytest.raises(SystemExit, match="0"):
        drill_run(["fcm_outage"], data_dir=tmp_path)
    shown = capsys.readouterr()
    assert "could not be kept" in shown.err
    assert "all holds" in shown.out


def test_a_small_disk_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BellbuoyError, match="no directory") as raised:
        drill_run(["disk_full"], small_disk=tmp_path / "none", data_dir=tmp_path)
    assert "--small-disk" in str(raised.value.hint)


def test_a_disk_that_is_not_small_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(BellbuoyError, match="would be filled"):
        drill_run(["disk_full"], small_disk=tmp_path, data_dir=tmp_path)
    assert not list(tmp_path.rglob("ballast"))


def test_a_public_key_that_is_none_accuses_nobody(tmp_path: Path) -> None:
    for public in ("zzz", "ab", ""):
        with pytest.raises(ConfigurationError, match="public key"):
            evidence.verify(tmp_path / "evidence.tar", public=public, data_dir=tmp_path)


def test_a_time_range_that_ends_before_it_begins_clears_nobody(tmp_path: Path) -> None:
    (tmp_path / "audit" / "0").mkdir(parents=True)
    (tmp_path / "audit" / "0" / "00000000000000000001.log").touch()
    with pytest.raises(ConfigurationError, match="--to"):
        evidence.scope(since="2030-01-01T00:00:00Z", until="2020-01-01T00:00:00Z", data_dir=tmp_path)


async def test_a_key_of_which_the_log_has_nothing_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit").mkdir()
    await written(tmp_path / "audit" / "0")
    evidence.scope(key_id="mistyped", data_dir=tmp_path)
    shown = capsys.readouterr()
    assert "nothing of a key mistyped" in " ".join(shown.err.split())
    evidence.scope(since="2020-01-01T00:00:00Z", data_dir=tmp_path)
    assert "nothing of" not in " ".join(capsys.readouterr().err.split())


def test_evidence_of_a_directory_without_an_audit_log_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no audit log"):
        evidence.make(tmp_path / "out.tar", url="http://127.0.0.1:1", key="k", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
