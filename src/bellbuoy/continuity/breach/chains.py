"""Read the chains of the audit log, and find every place at which one is not as it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO

from msgspec import Struct

from bellbuoy.model.audit import LINE_BYTES_MAX, Entry, Head, entry_of, header_of, parts, seal

Files = Mapping[str, Callable[[], IO[bytes]]]
"""Segments by their names, `FOLDER/NUMBER.log`, each with what opens it."""

_WAYS_MAX = 6  # Hashes that the next entry may go by after damage.
FINDINGS_MAX = 100
"""The most places that are named; the first is what counts."""


class Finding(Struct, frozen=True):
    """A place that is not as it was written. `offset` is that of the entry's first byte, None where there is none."""

    file: str
    entry: int | None
    offset: int | None
    what: str

    @property
    def place(self) -> str:
        """The file, and as far as they are known the entry and its first byte, in words."""
        known = (("entry", self.entry), ("byte", self.offset))
        within = ", ".join(f"{name} {number}" for name, number in known if number is not None)
        return f"{self.file}: {within}" if within else self.file


class Chain(Struct, frozen=True):
    """A chain as far as it can be read: from which entry to which, and the hash of the last."""

    folder: str
    chain: str
    first: int
    last: int
    hash: str


class Checked(Struct, frozen=True):
    """What was read, and what is wrong with it. `heads` counts the recorded heads that were compared."""

    chains: list[Chain]
    findings: list[Finding]
    heads: int = 0


def check(files: Files, heads: Sequence[Head] = ()) -> Checked:
    """Check every chain against itself, and against heads that were recorded elsewhere."""
    chains: list[Chain] = []
    findings: list[Finding] = []
    for folder, names in _folders(files).items():
        reader = _Reader(files, names, heads)
        for _ in reader.run():
            pass
        chains.append(Chain(folder, reader.chain, reader.first, reader.last, reader.hash))
        findings += reader.findings
    known = {chain.chain: chain for chain in chains}
    for head in heads:
        found = known.get(head.chain)
        if found is None:
            findings.append(Finding(head.where, head.n, None, f"the whole chain {head.chain} is missing"))
        elif found.last < head.n:
            what = f"entries {found.last + 1} to {head.n} at the end are missing"
            findings.append(Finding(found.folder, found.last + 1, None, what))
    return Checked(chains, findings[:FINDINGS_MAX], len(heads))


def entries(files: Files) -> Iterator[Entry]:
    """All entries that can be read, chain by chain, each once although several archives may have it.

    What is damaged is left out, which `check` says.
    """
    seen: dict[str, int] = {}
    for names in _folders(files).values():
        reader, before = _Reader(files, names, ()), dict(seen)
        for entry in reader.run():
            if entry.n > before.get(reader.chain, 0):
                yield entry
        seen[reader.chain] = max(reader.last, before.get(reader.chain, 0))


def _folders(files: Files) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        found.setdefault(str(PurePosixPath(name).parent), []).append(name)
    return found


class _Reader:
    """Walks one chain."""

    def __init__(self, files: Files, names: Sequence[str], heads: Sequence[Head]) -> None:
        self._files = files
        self._names = names
        self._heads = heads
        self.findings: list[Finding] = []
        self.chain, self.hash = "", ""
        self.first, self.last = 0, 0
        self._pruned = 0  # Up to which entry the log itself has forgotten.
        self._running: list[str] = []  # The hashes that the next entry may go by; after damage more than one.
        self._sound = True  # Whether the line before was.

    def run(self) -> Iterator[Entry]:
        """Every entry that checks."""
        for name in self._names:
            with self._files[name]() as file:
                header = file.readline(LINE_BYTES_MAX)
                self._begin(name, header)
                offset = len(header)
                while line := file.readline(LINE_BYTES_MAX):
                    entry = self._look(name, offset, line)
                    offset += len(line)
                    if entry is not None:
                        yield entry
        if self._names and self.first > self._pruned + 1:
            self._report(self._names[0], 1, None, f"entries 1 to {self.first - 1} at the beginning are missing")

    def _begin(self, name: str, line: bytes) -> None:
        header = header_of(line)
        stem = PurePosixPath(name).stem
        first = int(stem) if stem.isdigit() else self.last + 1
        if header is None or header.first != first or (self.chain and header.chain != self.chain):
            self._report(name, first, 0, "the header is not as it was written")
        if self.first == 0:
            self.first, self.last = first, first - 1
            self.hash = header.previous if header is not None else ""
        elif first > self.last + 1:
            self._report(name, self.last + 1, None, f"entries {self.last + 1} to {first - 1} are missing")
        elif first <= self.last or (header is not None and header.previous not in (self.hash, *self._running)):
            self._report(name, first, 0, "the segment does not go on from the one before")
        if header is not None:
            self.chain = self.chain or header.chain
        self.last = first - 1
        # The first entry goes by the hash that stands here, or by the right one, whichever of them was changed.
        found = parts(line)
        self._running = [found[0], *(seal(one, found[1]) for one in (self.hash, *self._running))] if found else []
        self._sound = header is not None

    def _look(self, name: str, offset: int, line: bytes) -> Entry | None:
        found = parts(line)
        stated, body = found if found is not None else ("", b"")
        entry = entry_of(body)
        expected = self.last + 1
        sound = entry is not None and any(seal(running, body) == stated for running in self._running)
        if entry is not None and sound and (entry.n == expected or not self._sound):
            self.last, self.hash, self._running, self._sound = entry.n, stated, [stated], True
            self._compare(name, offset, entry, stated)
            if entry.action == "pruned" and entry.target is not None and entry.target.isdigit():
                self._pruned = max(self._pruned, int(entry.target))
            return entry
        what = "the entry is not as it was written" if line.endswith(b"\n") else "the entry is not whole"
        self._report(name, expected, offset, what)
        # The next one goes by the hash that stands here, or by the right one, whichever of them was changed.
        self._running = ([stated] * bool(found) + [seal(one, body) for one in self._running] + self._running)[
            :_WAYS_MAX
        ]
        self.last, self.hash, self._sound = expected, stated or self.hash, False
        return None

    def _compare(self, name: str, offset: int, entry: Entry, stated: str) -> None:
        for head in self._heads:
            if (head.chain, head.n) == (self.chain, entry.n) and head.hash != stated:
                self._report(name, entry.n, offset, "the chain was written anew: a recorded head has another hash")

    def _report(self, name: str, entry: int | None, offset: int | None, what: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(name, entry, offset, what))
