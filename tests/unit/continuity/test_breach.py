"""Whom a key touched, and what a report says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellbuoy.adapters.evidence import FileSigner, is_signed
from bellbuoy.continuity.breach import chains, report, scope
from bellbuoy.continuity.breach.chains import Checked, Finding
from bellbuoy.continuity.breach.evidence import seal_evidence, verify
from bellbuoy.errors import ConfigurationError
from bellbuoy.model.audit import Entry
from tests.support.audit import entry, files, written

READ = ("email", "phone")


def test_the_scope_of_a_key_has_each_user_once_with_fields_times_and_when() -> None:
    entries = [
        entry(1, key="k", users={"a": 2, "b": 1}, fields=READ, until=1_800_000_001.5, count=3),
        entry(2, key="other", users={"c": 1}, fields=READ),
        entry(3, key="k", users={"a": 1}, fields=("devices",)),
        entry(4, key="k", users={"d": 1}, fields=READ, status=404),
        entry(5, key="k", fields=("notifications",), unnamed=7, count=7),
        Entry(0, 1_800_000_006.0, "pruned", target="3"),
    ]
    found = scope.find(entries, key="k", since=None, until=None)
    assert {user: (one.times, one.first, one.last, one.fields) for user, one in found.users.items()} == {
        "a": (3, 1_800_000_001.0, 1_800_000_003.0, ["email", "phone", "devices"]),
        "b": (1, 1_800_000_001.0, 1_800_000_001.5, ["email", "phone"]),
    }
    assert (found.unnamed, found.refused, found.first, found.last) == (7, 1, 1_800_000_001.0, 1_800_000_005.0)
    assert scope.find([], key="k", since=None, until=None).id == found.id


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [(None, None, 3), (1_800_000_002.0, None, 2), (None, 1_800_000_002.0, 2), (1_800_000_004.0, None, 0)],
)
def test_a_scope_is_of_a_stretch_of_time(since: float | None, until: float | None, expected: int) -> None:
    entries = [entry(n, users={f"u{n}": 1}) for n in (1, 2, 3)]
    assert len(scope.find(entries, key=None, since=since, until=until).users) == expected


def test_the_report_has_acts_and_uses_in_order_and_no_user() -> None:
    entries = [
        entry(2, key="k", users={"secret-user": 1}, fields=READ),
        Entry(0, 1_800_000_001.0, "POST /v1/keys", 201, key="k", target="k2"),
        Entry(0, 1_800_000_009.0, "PUT /v1/flags/{name}", 422, key="k", target="f"),
    ]
    found = scope.find(entries, key="k", since=None, until=None)
    made = report.put_together(report.acts(entries), scope=found, checked=Checked([], []), state=None, now=0.0)
    assert [line.what for line in made.timeline] == ["POST /v1/keys k2", "first use of the key", "last use of the key"]
    text = report.markdown(made)
    assert "secret-user" not in text
    assert "1 users were touched" in text
    assert "email, phone" in text


async def test_an_archive_says_who_sealed_it_and_what_was_wrong_by_then(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0", count=3)
    (name,) = good
    spoilt = {name: good[name].replace(b'"u1"', b'"u9"')}
    out, signer = tmp_path / "e.tar", FileSigner(tmp_path / "a.key")

    def seal(path: Path) -> None:
        seal_evidence(
            path,
            segments=files(spoilt),
            documents={},
            heads=[head],
            signer=signer,
            made_at="now",
            where="here",
            version="1",
        )

    seal(out)
    with pytest.raises(ConfigurationError, match="there already"):
        seal(out)
    verdict = verify(out, is_signed=is_signed, public=None)
    assert verdict.manifest is not None
    assert (verdict.findings, verdict.manifest.public) == ([], signer.public)
    assert [one.entry for one in verdict.manifest.findings] == [2]
    other = FileSigner(tmp_path / "b.key").public
    assert "not signed" in verify(out, is_signed=is_signed, public=other).findings[0].what
    (tmp_path / "junk").write_bytes(b"junk")
    assert verify(tmp_path / "junk", is_signed=is_signed, public=None).findings
    with pytest.raises(ConfigurationError):
        verify(tmp_path / "none", is_signed=is_signed, public=None)


async def test_a_chain_that_was_written_anew_is_found_by_a_head_in_its_middle(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0", count=3)
    (tmp_path / "1").mkdir()
    other, _ = await written(tmp_path / "1", count=6)
    renamed = {name.replace("1/", "0/", 1): data for name, data in other.items()}
    assert any("is missing" in one.what for one in chains.check(files(renamed), [head]).findings)
    assert chains.check(files(good), [head]).findings == []
    forged = head.__class__(head.chain, head.n, "0" * 64, head.at, head.where)
    assert any("written anew" in one.what for one in chains.check(files(good), [forged]).findings)


def test_a_signature_has_one_way_to_be_written(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path / "a.key")
    signature = signer.sign(b"data")
    assert is_signed(signer.public.upper(), signature, b"data")
    for other in (signature.upper(), f"{signature} ", signature[:2] + " " + signature[2:], "none"):
        assert not is_signed(signer.public, other, b"data")


@pytest.mark.parametrize(
    ("entry_number", "offset", "expected"),
    [
        (7, 120, "0/1.log: entry 7, byte 120"),
        (7, None, "0/1.log: entry 7"),
        (None, 0, "0/1.log: byte 0"),
        (None, None, "0/1.log"),
    ],
)
def test_of_a_place_only_what_is_known_is_said(entry_number: int | None, offset: int | None, expected: str) -> None:
    finding = Finding("0/1.log", entry_number, offset, "it is missing")
    assert finding.place == expected
    found = scope.find([], key=None, since=None, until=None)
    made = report.put_together([], scope=found, checked=Checked([], [finding]), state=None, now=0.0)
    assert f"- {expected}: it is missing\n" in report.markdown(made)
