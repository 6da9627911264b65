"""Whatever is changed in the audit log, and wherever, it is found, at its place."""

from __future__ import annotations

from pathlib import Path
from random import Random

from bellbuoy.adapters.evidence import FileSigner, is_signed
from bellbuoy.continuity.breach import chains
from bellbuoy.continuity.breach.evidence import seal_evidence, verify
from tests.support.audit import files, written


def line_at(data: bytes, offset: int) -> tuple[int, int]:
    """The number of the line that a byte is in, the header's being 0, and where that line begins."""
    before = data[:offset]
    return before.count(b"\n"), before.rfind(b"\n") + 1


async def test_every_byte_of_a_chain_that_is_changed_is_found_at_its_place(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0")
    assert len(good) > 2
    assert chains.check(files(good), [head]).findings == []
    for name, data in good.items():
        first = int(Path(name).stem)
        for offset in range(len(data)):
            for other in {data[offset] ^ 1, data[offset] ^ 0x80, 0x0A, 0x20} - {data[offset]}:
                spoilt = {**good, name: data[:offset] + bytes([other]) + data[offset + 1 :]}
                findings = chains.check(files(spoilt)).findings
                assert findings, (name, offset, other)
                line, begins = line_at(data, offset)
                place = (findings[0].file, findings[0].entry, findings[0].offset)
                assert place == (name, max(first, first + line - 1), begins), (offset, other, findings)


async def test_lines_and_segments_that_are_missing_doubled_or_moved_are_found(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0")
    names = list(good)
    for name in names:
        without = {other: data for other, data in good.items() if other != name}
        assert chains.check(files(without), [head]).findings, name
        lines = good[name].splitlines(keepends=True)
        for at in range(len(lines)):
            dropped = {**good, name: b"".join(lines[:at] + lines[at + 1 :])}
            assert chains.check(files(dropped), [head]).findings, (name, at)
            doubled = {**good, name: b"".join([*lines[: at + 1], *lines[at:]])}
            assert chains.check(files(doubled), [head]).findings, (name, at)
            if at:
                moved = {**good, name: b"".join([*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :]])}
                assert chains.check(files(moved), [head]).findings, (name, at)


async def test_a_tail_that_is_cut_off_is_found_against_the_head(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0")
    last = list(good)[-1]
    shorter = {**good, last: good[last][: good[last].rstrip(b"\n").rfind(b"\n") + 1]}
    assert chains.check(files(shorter)).findings == []  # The chain itself cannot know.
    (finding,) = chains.check(files(shorter), [head]).findings
    assert (finding.entry, finding.what) == (head.n, f"entries {head.n} to {head.n} at the end are missing")
    (finding,) = chains.check({}, [head]).findings
    assert "the whole chain" in finding.what


async def test_an_archive_in_which_any_byte_is_changed_is_found(tmp_path: Path) -> None:
    good, head = await written(tmp_path / "0", count=6)
    out = tmp_path / "evidence.tar"
    signer = FileSigner(tmp_path / "evidence.key")
    seal_evidence(
        out,
        segments=files(good),
        documents={"keys.json": b'{"items": []}'},
        heads=[head],
        signer=signer,
        made_at="2030-01-01T00:00:00.000Z",
        where="here",
        version="1",
    )
    data = out.read_bytes()
    assert verify(out, is_signed=is_signed, public=signer.public).findings == []
    spoilt = tmp_path / "spoilt.tar"
    rng = Random(7)
    for offset in rng.sample(range(len(data)), 600):
        spoilt.write_bytes(data[:offset] + bytes([data[offset] ^ rng.randrange(1, 256)]) + data[offset + 1 :])
        assert verify(spoilt, is_signed=is_signed, public=signer.public).findings, offset
    for size in rng.sample(range(len(data)), 50):
        spoilt.write_bytes(data[:size])
        assert verify(spoilt, is_signed=is_signed, public=signer.public).findings, size
    name, segment = next(iter(good.items()))
    at = segment.index(b'"email"')
    place = data.index(segment) + at
    spoilt.write_bytes(data[:place] + b"X" + data[place + 1 :])
    finding = verify(spoilt, is_signed=is_signed, public=signer.public).findings[0]
    assert (finding.file, finding.entry, finding.offset) == (f"audit/{name}", 1, segment.rfind(b"\n", 0, at) + 1)
