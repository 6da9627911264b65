"""What the commands for a breach say of what they could not find out, and of what was edited."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from bellbuoy.adapters.evidence import FileSigner
from bellbuoy.continuity.breach.evidence import seal_evidence
from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import breach, evidence
from bellbuoy.service.times import stamp
from tests.support.audit import anew, contents, entry, files, forget, litter, log_in, written

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
async def here(tmp_path: Path) -> Path:
    """A data directory with an audit log."""
    (tmp_path / "data" / "audit").mkdir(parents=True)
    await written(tmp_path / "data" / "audit" / "0")
    return tmp_path / "data"


@pytest.fixture
async def archive(tmp_path: Path) -> Path:
    """An archive of another machine."""
    made, head = await written(tmp_path / "0")
    seal_evidence(
        tmp_path / "evidence.tar",
        segments=files(made),
        documents={},
        heads=[head],
        signer=FileSigner(tmp_path / "other.key"),
        made_at="2026-12-01T00:00:00Z",
        where="there",
        version="1",
    )
    return tmp_path / "evidence.tar"


@pytest.fixture
def asked(here: Path) -> Iterator[str]:
    """A service that writes what waits whenever it is asked for heads, each time into a segment of its own."""
    log = log_in(here / "audit" / "0", segment_bytes=1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known: dict[str, Any] = {"items": []}
            if self.path == "/v1/breach":
                asyncio.run(log.append([entry(log.head.n, users={"late": 1}, fields=("email",))]))
                head = {**msgspec.to_builtins(log.head), "at": stamp(log.head.at)}
                known = {"sending_stopped": False, "accepting_stopped": False, "revoked": [], "heads": [head]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(known).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)
    asyncio.run(log.aclose())


def edit(path: Path) -> None:
    """Change a user's name in an entry to another of the same length."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"u4"', b'"u9"', 1))


def test_isolating_nothing_names_what_there_is_and_an_example() -> None:
    with pytest.raises(ConfigurationError, match="nothing") as raised:
        breach.isolate(url=NOBODY)
    hint = str(raised.value.hint)
    for option in ("--key-id", "--all-keys", "--stop-sending", "--stop-accepting", "bellbuoy breach isolate --"):
        assert option in hint


def test_a_log_that_was_compared_with_no_head_is_not_called_the_true_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.verify(data_dir=here, url=NOBODY)
    said = capsys.readouterr()
    assert "as it was written" not in said.out
    assert "no recorded head" in said.out
    for way in ("--url", "--against"):
        assert way in said.out
    evidence.verify(data_dir=here, url=NOBODY, as_json=True)
    assert json.loads(capsys.readouterr().out)["heads"] == 0


def test_a_log_that_was_compared_with_a_head_is_as_it_was_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY)
    capsys.readouterr()
    evidence.verify(against=here / "own.tar", data_dir=here, url=NOBODY)
    assert "as it was written" in capsys.readouterr().out
    evidence.verify(here / "own.tar", data_dir=here, url=NOBODY)
    assert "as it was sealed" in capsys.readouterr().out


def test_a_segment_that_begins_when_the_service_is_asked_is_no_edit(
    here: Path, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service: dict[str, Any] = {"data_dir": here, "url": asked, "key": "k"}
    evidence.verify(**service)
    assert "as it was written" in capsys.readouterr().out
    evidence.make(out=here / "own.tar", **service, as_json=True)
    assert json.loads(capsys.readouterr().out)["findings"] == []
    evidence.scope(since="2020-01-01T00:00:00Z", **service, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["verified"], document["users"]["late"]["times"]) == (True, 3)
    evidence.report(**service, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["audit_log"]["findings"] == []
    assert (document["scope"]["users"], document["scope"]["fields"]) == (13, ["email"])
    assert "late" not in json.dumps(document), "a report has no names"


def test_that_a_log_has_forgotten_is_said_with_who_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY)
    capsys.readouterr()
    up_to = forget(here / "audit" / "0", 1_800_000_100.0)
    evidence.verify(data_dir=here, url=NOBODY)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"entries 1 to {up_to} were forgotten" in said
    assert "only the log itself says so" in said
    evidence.make(out=here / "after.tar", data_dir=here, url=NOBODY)
    evidence.verify(against=here / "after.tar", data_dir=here, url=NOBODY)
    assert "as it was written, but for what only the log itself says" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(typer.Exit):
        evidence.verify(against=here / "own.tar", data_dir=here, url=NOBODY, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert "no recorded head shows" in document["findings"][0]["what"]
    assert document["chains"][0]["forgotten"]["shown"] is False


def test_an_archive_of_a_log_that_was_edited_before_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(max((here / "audit" / "0").glob("*.log"), key=lambda path: path.read_bytes().count(b'"u4"')))
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY)
    capsys.readouterr()
    evidence.verify(here / "own.tar", data_dir=here)
    said = capsys.readouterr().out
    assert "as it was sealed" in said
    assert "the entry is not as it was written" in said


def test_the_scope_of_an_archive_that_was_edited_says_so(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.scope(since="2020-01-01T00:00:00Z", archives=[archive], data_dir=archive.parent)
    said = capsys.readouterr()
    assert "not compared with a key" in said.err
    edit(archive)
    with pytest.raises(typer.Exit) as raised:
        evidence.scope(since="2020-01-01T00:00:00Z", archives=[archive], data_dir=archive.parent)
    assert raised.value.exit_code == 1
    said = capsys.readouterr()
    assert "u5" in said.out, "what can be read is shown all the same"
    assert "the entry is not as it was written" in said.err
    with pytest.raises(typer.Exit):
        evidence.scope(since="2020-01-01T00:00:00Z", archives=[archive], data_dir=archive.parent, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is False
    assert document["findings"][0]["what"] == "the entry is not as it was written"
    assert "u5" in document["users"]


def test_an_archive_whose_key_nobody_vouches_for_says_so(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verify(**given: Any) -> tuple[str | None, str]:
        evidence.verify(archive, data_dir=archive.parent, as_json=True, **given)
        said = capsys.readouterr()
        return json.loads(said.out)["compared"], said.err.replace("\n", " ")

    compared, told = verify()
    assert compared is None
    assert "not compared with a key" in told
    public = FileSigner(archive.parent / "other.key").public
    assert verify(public=public) == ("--public", "")
    (archive.parent / "audit").mkdir()
    (archive.parent / "0").rename(archive.parent / "audit" / "0")
    evidence.verify(against=archive, data_dir=archive.parent, url=NOBODY, as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["compared"] is None
    assert "not compared with a key" in said.err.replace("\n", " ")
    (archive.parent / "other.key").rename(archive.parent / "evidence.key")
    assert verify() == ("evidence.key", "")


def test_the_scope_of_an_archive_goes_by_the_keys_that_are_given(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (FileSigner(archive.parent / name).public for name in ("some.key", "other.key"))
    asked: dict[str, Any] = {"since": "2020-01-01T00:00:00Z", "archives": [archive], "data_dir": archive.parent}
    evidence.scope(**asked, public=[ours, theirs.upper()], as_json=True)
    said = capsys.readouterr()
    assert (json.loads(said.out)["verified"], said.err) == (True, "")
    with pytest.raises(typer.Exit):
        evidence.scope(**asked, public=[ours])
    assert "not signed by" in capsys.readouterr().err


def test_the_scope_of_a_log_that_was_edited_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.scope(since="2020-01-01T00:00:00Z", data_dir=here, url=NOBODY, as_json=True)
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert (document["verified"], document["findings"]) == (False, [])
    assert [one["heads"] for one in document["chains"]] == [0]
    assert "no recorded head was compared" in said.err.replace("\n", " ")
    edit(max((here / "audit" / "0").glob("*.log"), key=lambda path: path.read_bytes().count(b'"u4"')))
    with pytest.raises(typer.Exit):
        evidence.scope(since="2020-01-01T00:00:00Z", data_dir=here, url=NOBODY)
    assert "the entry is not as it was written" in capsys.readouterr().err


def test_the_scope_of_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        evidence.scope(key_id="k1", archives=[tmp_path / "junk"], data_dir=tmp_path)


async def test_the_scope_over_archives_of_one_chain_has_what_any_of_them_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = await written(tmp_path / "0")
    names = list(whole)
    signer = FileSigner(tmp_path / "some.key")

    def seal(name: str, segments: dict[str, bytes]) -> Path:
        told = {"documents": {}, "heads": [], "made_at": "2026-12-01T00:00:00Z", "where": "there", "version": "1"}
        seal_evidence(tmp_path / name, segments=files(segments), signer=signer, **told)  # type: ignore[arg-type]
        return tmp_path / name

    early = seal("z.tar", {name: whole[name] for name in names[:-1]})
    late = seal("a.tar", whole)
    asked: dict[str, Any] = {"since": "2020-01-01T00:00:00Z", "public": [signer.public], "as_json": True}
    evidence.scope(**asked, archives=[late, early])
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is True
    assert {user: one["times"] for user, one in document["users"].items()} == {f"u{n}": 1 for n in range(12)}
    # A chain that begins later although the log does not say that it has forgotten anything is told, and read.
    cut = seal("0.tar", {name: whole[name] for name in names[1:]})
    with pytest.raises(typer.Exit):
        evidence.scope(**asked, archives=[cut, early])
    assert len(json.loads(capsys.readouterr().out)["users"]) == 12
    # Two that say different things of one chain cannot both be as they were written.
    other = seal("other.tar", anew(whole, 9))
    with pytest.raises(typer.Exit):
        evidence.scope(**asked, archives=[late, other])
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is False
    assert any("contradicts" in one["what"] or "written anew" in one["what"] for one in document["findings"])


def test_evidence_of_a_service_that_is_away_says_what_is_not_in_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY, key="k", as_json=True)
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert sorted(missing) == ["changes", "incidents", "keys", "state"]
    assert all(why.startswith("the service did not answer") for why in missing.values())
    evidence.make(out=here / "another.tar", data_dir=here, url=NOBODY, key="k")
    assert "without incidents, changes, keys, state: the service did not answer" in capsys.readouterr().err


@pytest.mark.timeout(30)
def test_what_only_has_the_name_of_a_segment_is_named_and_waits_for_nobody(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = litter(here / "audit" / "0")
    with pytest.raises(typer.Exit):
        evidence.verify(data_dir=here, url=NOBODY, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert {Path(one["file"]).name for one in document["findings"]} == names
    assert [one["last"] for one in document["chains"]] == [12]
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert ({Path(one["file"]).name for one in document["findings"]}, document["entries"]) == (names, 12)
    evidence.verify(here / "own.tar", data_dir=here, as_json=True)
    assert json.loads(capsys.readouterr().out)["findings"] == []


async def test_an_archive_of_copies_that_contradict_each_other_is_as_it_was_sealed_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = here / "audit"
    for name, data in anew(contents(audit / "0"), 9).items():
        path = audit / "1" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    evidence.make(out=here / "own.tar", data_dir=here, url=NOBODY)
    capsys.readouterr()
    evidence.verify(here / "own.tar", data_dir=here)
    said = capsys.readouterr().out
    assert "contradicts its copy" in said
    assert "as it was sealed" in said


def test_an_archive_has_each_file_once_and_in_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = here / "own.tar"
    evidence.make(out=sound, data_dir=here, url=NOBODY)
    with tarfile.open(sound) as archive:
        members = [(one.name, archive.extractfile(one).read()) for one in archive.getmembers()]  # type: ignore[union-attr]
    for what, order in (("twice", [members[0], *members]), ("order", [*members[1:], members[0]]), ("", members)):
        other = here / f"other{what}.tar"
        with tarfile.open(other, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, data in order:
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o400
                archive.addfile(info, io.BytesIO(data))
        capsys.readouterr()
        if not what:
            evidence.verify(other, data_dir=here)
            assert "as it was sealed" in capsys.readouterr().out
            continue
        with pytest.raises(typer.Exit):
            evidence.verify(other, data_dir=here, as_json=True)
        (finding,) = json.loads(capsys.readouterr().out)["findings"]
        assert what in finding["what"]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        '{"id": "x"}',
        '{"id": "x", "users": "abc"}',
        '{"id": "x", "users": null}',
        '{"id": "x", "users": ["ann"]}',
        '{"id": 1, "users": {}}',
        '{"id": "x\\ny", "users": {}}',
        '{"id": "x", "users": {}, "verified": "no"}',
    ],
)
def test_nobody_is_told_of_what_is_no_scope(tmp_path: Path, document: str) -> None:
    path = tmp_path / "scope.json"
    path.write_text(document)
    with pytest.raises(ConfigurationError, match="is no scope") as raised:
        breach.notify(scope=path, title="T", body="B", url=NOBODY, key="key")
    assert "breach scope" in str(raised.value.hint)
