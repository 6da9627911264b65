"""Whom a key touched, and what a report says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from bellbuoy.adapters.evidence import FileSigner, is_signed
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.breach import chains, report, scope
from bellbuoy.continuity.breach.chains import Checked, Finding
from bellbuoy.continuity.breach.evidence import seal_evidence, verify
from bellbuoy.errors import ConfigurationError
from bellbuoy.model.audit import Entry, Header, header_of, sealed, sealed_header
from tests.support.audit import Contents, anew, contents, entry, files, log_in, written

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
    assert (made.touched, made.left_out) == ({"POST /v1/keys": ["k2"]}, {})
    text = report.markdown(made)
    assert "secret-user" not in text
    assert "1 users were touched" in text
    assert "email, phone" in text


def test_the_report_of_a_key_has_what_it_did_whatever_others_did_since() -> None:
    def act(at: float, key: str, action: str, target: str | None) -> Entry:
        return Entry(0, at, action, 201, key=key, target=target)

    entries = [act(1.0, "thief", "POST /v1/keys", "k2")]
    entries += [act(2.0 + n / 1e6, "thief", "PUT /v1/flags/{name}", f"f{n}") for n in range(report.LINES_MAX + 10)]
    entries += [act(9.0, "other", "PUT /v1/settings/{name}", "s")] * 3_000
    found = scope.find(entries, key="thief", since=None, until=None)
    lines = [*report.acts(entries), report.Line(10.0, "incident 1 began", kind="incidents")]
    made = report.put_together(lines, scope=found, checked=Checked([], []), state=None, now=0.0)
    assert len(made.timeline) == report.LINES_MAX
    assert {line.by for line in made.timeline} == {"thief"}
    assert [line.what for line in made.timeline if "use" in line.what] == [
        "first use of the key",
        "last use of the key",
    ]
    assert made.touched["POST /v1/keys"] == ["k2"]
    assert made.left_out == {
        "acts of the key": 13,
        "acts": 3_000,
        "incidents": 1,
        "names of PUT /v1/flags/{name}": 10,
    }
    text = report.markdown(made)
    assert "| `POST /v1/keys` | k2 |" in text
    assert "13 acts of the key" in text
    # Where the key did little there is room for the newest that others did.
    few = [*entries[:1], *entries[-3_000:]]
    found = scope.find(few, key="thief", since=None, until=None)
    made = report.put_together(report.acts(few), scope=found, checked=Checked([], []), state=None, now=0.0)
    assert (len(made.timeline), made.timeline[0].what) == (report.LINES_MAX, "POST /v1/keys k2")
    assert made.left_out == {"acts": 1_003}


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


def forged(good: Contents, first: int, previous: str = "0" * 64) -> Contents:
    """One segment in place of a chain, which says of itself that all before was forgotten."""
    name = next(iter(good))
    header = header_of(good[name].splitlines(keepends=True)[0])
    assert header is not None
    running, top = sealed_header(Header(header.chain, first, previous, header.at))
    _, line = sealed(running, Entry(first, header.at, "pruned", target=str(first - 1)))
    return {f"{Path(name).parent}/{first:020}.log": top + line}


def moved(good: Contents, folder: str) -> Contents:
    return {f"{folder}/{Path(name).name}": data for name, data in good.items()}


@pytest.mark.parametrize("first", [6, 7, 12, 13, 1_000])
async def test_a_chain_that_was_replaced_by_its_own_word_that_all_was_forgotten_is_found(
    tmp_path: Path, first: int
) -> None:
    good, head = await written(tmp_path / "0")
    sealed_up_to = chains.check(files(good)).chains[0]
    for previous in ("0" * 64, sealed_up_to.hash):
        checked = chains.check(files(forged(good, first, previous)), [head])
        assert checked.findings, previous
    # Without any head nobody can know, and nothing is said to have been compared.
    checked = chains.check(files(forged(good, first)))
    assert (checked.findings, checked.heads, checked.alone) == ([], 0, ["0"])


async def test_what_the_log_forgot_is_believed_when_a_head_shows_it_and_not_before(tmp_path: Path) -> None:
    clock = ManualClock()
    log = log_in(tmp_path / "0", clock, segment_s=86_400.0)
    heads = []
    for n in range(4):
        await log.append([entry(n)])
        heads.append(log.head)
        clock.jump(86_400.0)
    assert await log.forget(await log.older(clock.time() - 2.5 * 86_400.0)) == 1
    await log.aclose()
    left = files(contents(tmp_path / "0"))
    assert chains.check(left, [*heads, log.head]).findings == []
    for known in (heads[:1], heads[:2], heads):
        (finding,) = chains.check(left, known).findings
        assert (finding.entry, finding.what.startswith("entries 1 to 1 are gone")) == (1, True)
    # The head before the first entry is known by its hash all the same.
    false = replace(heads[0], hash="0" * 64)
    assert "written anew" in chains.check(left, [false, log.head]).findings[0].what


async def test_a_second_folder_of_a_chain_is_sound_only_as_its_beginning(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "1")
    names = list(good)
    begun = {name: good[name] for name in names[:2]}
    assert chains.check(files({**good, **moved(begun, "0")}), [head]).findings == []
    for folder in ("0", "2"):
        both = files({**good, **moved(anew(good, 9), folder)})
        checked = chains.check(both, [head])
        (finding,) = checked.findings
        assert (finding.file, "contradicts" in finding.what, checked.apart) == (folder, True, [folder])
        users = {user for one in chains.entries(both, checked.apart) for user in one.users}
        assert users == {f"u{n}" for n in range(12)}
    longer = anew(good, 12)
    assert any("contradicts" in one.what for one in chains.check(files({**begun, **moved(longer, "0")})).findings)


async def test_the_entries_of_a_chain_are_those_of_all_its_copies(tmp_path: Path) -> None:
    good, _ = await written(tmp_path / "0")
    names = list(good)
    assert len(names) > 2
    early = {f"b/{name}": good[name] for name in names[:-1]}
    late = {f"a/{name}": good[name] for name in names[1:]}
    found = [one.n for one in chains.entries(files({**early, **late}))]
    assert sorted(found) == list(range(1, 13))
    without = {f"a/{name}": good[name] for name in names[2:]} | {f"b/{name}": good[name] for name in names[:1]}
    assert any("goes on in another folder" in one.what for one in chains.check(files(without)).findings)


async def test_a_chain_that_nobody_compared_is_called_so_although_another_one_was(tmp_path: Path) -> None:
    known, head = await written(tmp_path / "0")
    other, _ = await written(tmp_path / "1")
    checked = chains.check(files({**known, **other}), [head])
    assert (checked.findings, [one.heads for one in checked.chains], checked.alone) == ([], [1, 0], ["1"])
    found = scope.find([], key=None, since=None, until=None)
    text = report.markdown(report.put_together([], scope=found, checked=checked, state=None, now=0.0))
    assert "as it was written" not in text
    assert "1: Every entry follows" in text
