"""Chains of the audit log to look at and to spoil."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from msgspec.structs import replace

from bellbuoy.adapters.auditlog import FileAuditLog
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.breach.chains import Files
from bellbuoy.model.audit import Entry, Head, Header, entry_of, header_of, parts, sealed, sealed_header

Contents = dict[str, bytes]


def entry(n: int, **fields: object) -> Entry:
    given: dict[str, object] = {"status": 200, "key": f"k{n % 2}", "tenant": "default", **fields}
    return Entry(0, 1_800_000_000.0 + n, "GET /v1/users/{user_id}", **given)  # type: ignore[arg-type]


def log_in(folder: Path, clock: ManualClock | None = None, **bounds: float) -> FileAuditLog:
    return FileAuditLog(folder, where="here", clock=clock or ManualClock(), **bounds)  # type: ignore[arg-type]


async def written(folder: Path, count: int = 12, each: int = 3) -> tuple[Contents, Head]:
    """A chain of several segments, and its head."""
    log = log_in(folder, segment_bytes=600)
    for at in range(0, count, each):
        await log.append([entry(n, users={f"u{n}": 1}, fields=("email",)) for n in range(at, at + each)])
    head = log.head
    await log.aclose()
    return contents(folder), head


def anew(good: Contents, upto: int) -> Contents:
    """The chain without the users of its entries, written anew as far as an entry."""
    made, running = dict[str, bytes](), ""
    for name, data in good.items():
        _, *lines = [found[1] for line in data.splitlines(keepends=True) if (found := parts(line)) is not None]
        kept = [one for line in lines if (one := entry_of(line)) is not None and one.n <= upto]
        told = header_of(data.splitlines(keepends=True)[0])
        assert told is not None
        if kept:
            running, made[name] = sealed_header(replace(told, previous=running))
        for one in kept:
            running, line = sealed(running, replace(one, users={}))
            made[name] += line
    return made


def forget(folder: Path, at: float) -> int:
    """Remove the first segment as whoever has the files can, behind a line that says that the log has forgotten it.

    Returns the last entry that is gone.
    """
    first, second, *_ = paths = sorted(folder.glob("*.log"))
    previous, body = parts(paths[-1].read_bytes().splitlines(keepends=True)[-1]) or ("", b"")
    last, up_to = entry_of(body), int(second.stem) - 1
    assert last is not None
    _, line = sealed(previous, Entry(last.n + 1, at, "pruned", target=str(up_to)))
    with paths[-1].open("ab") as file:
        file.write(line)
    first.unlink()
    return up_to


def age(folder: Path) -> None:
    """Begin another segment as whoever has the files can, as if that had been long ago."""
    path = max(folder.glob("*.log"))
    lines = path.read_bytes().splitlines(keepends=True)
    header, found = header_of(lines[0]), parts(lines[-1])
    assert header is not None
    assert found is not None
    first = int(path.stem) + len(lines) - 1
    running, top = sealed_header(Header(header.chain, first, found[0], 0.0))
    _, line = sealed(running, Entry(first, 0.0, "torn"))
    (folder / f"{first:020}.log").write_bytes(top + line)


def contents(folder: Path) -> Contents:
    return {f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.log"))}


def files(of: Contents) -> Files:
    return {name: _opens(data) for name, data in of.items()}


def _opens(data: bytes) -> Callable[[], IO[bytes]]:
    return lambda: io.BytesIO(data)


def litter(folder: Path) -> set[str]:
    """Put into a log's folder what has the name of a segment and is none; returns the names."""
    pipe, directory, link = (f"{number:020}.log" for number in (900, 901, 902))
    os.mkfifo(folder / pipe)
    (folder / directory).mkdir()
    (folder / link).symlink_to(folder / "nowhere")
    (folder / "\u00b2.log").write_text("")
    return {pipe, directory, link, "\u00b2.log"}
