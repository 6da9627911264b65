"""Read the chains of the audit log, and find every place at which one is not as it was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO

from msgspec import Struct, field

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


class Forgotten(Struct, frozen=True):
    """What the log says of itself that it has forgotten: all entries up to one.

    Args:
        up_to: the last of them.
        at: when, in epoch seconds.
        age_s: how old the youngest of them was by then at least, going by the segment behind it.
        shown: whether the service itself has recorded elsewhere that it had the log forget them. Without that it is
            the word of whoever can write the files.
    """

    up_to: int
    at: float
    age_s: float
    shown: bool


class Chain(Struct, frozen=True):
    """A chain as far as it can be read: from which entry to which, and the hash of the last.

    `heads` counts the heads recorded elsewhere that it has. Without one nothing shows that it was not written anew.
    `forgotten` is None when it begins with its first entry, or does not say what became of those before.
    """

    folder: str
    chain: str
    first: int
    last: int
    hash: str
    heads: int = 0
    forgotten: Forgotten | None = None


class Checked(Struct, frozen=True):
    """What was read, and what is wrong with it. `apart` are folders that contradict another one of their chain."""

    chains: list[Chain]
    findings: list[Finding]
    apart: list[str] = field(default_factory=list)

    @property
    def heads(self) -> int:
        """How many recorded heads were found in the chains."""
        return sum(one.heads for one in self.chains)

    @property
    def alone(self) -> list[str]:
        """The folders of chains that no recorded head was compared with."""
        compared = {one.chain for one in self.chains if one.heads}
        return [one.folder for one in self.chains if one.chain not in compared]


def check(files: Files, heads: Sequence[Head] = ()) -> Checked:
    """Check every chain against itself, against its other copies, and against heads that were recorded elsewhere.

    Of a chain that somebody has recorded a head of, nothing is believed that no head shows: not that entries at its
    beginning were forgotten, and not that it ends where it ends. What the service has recorded as forgotten decides;
    where no head says anything of that, one that is not older than the log's own word has to do.
    """
    readers = []
    for folder, names in _folders(files).items():
        reader = _Reader(files, names, heads, folder)
        for _ in reader.run():
            pass
        readers.append(reader)
    # From the one that ends last, so that what shows of a longer copy shows of the shorter one too.
    by_end = sorted(readers, key=lambda reader: reader.last, reverse=True)
    apart = [one.folder for at, one in enumerate(by_end) if one.chain and not _goes_with(one, by_end[:at], files)]
    for reader in readers:
        reader.look_at_beginning()
    findings = [finding for reader in readers for finding in reader.findings]
    known = {reader.chain: reader for reader in reversed(by_end)}
    for head in heads:
        found = known.get(head.chain)
        if found is None:
            findings.append(Finding(head.where, head.n, None, f"the whole chain {head.chain} is missing"))
        elif found.last < head.n:
            what = f"entries {found.last + 1} to {head.n} at the end are missing"
            findings.append(Finding(found.folder, found.last + 1, None, what))
    read = [one for one in readers if one.first]
    chains = [
        Chain(one.folder, one.chain, one.first, one.last, one.hash, len(one.shown), one.forgotten) for one in read
    ]
    return Checked(chains, findings[:FINDINGS_MAX], apart)


def _goes_with(one: _Reader, longer: Sequence[_Reader], files: Files) -> bool:
    """Whether a copy of a chain is the beginning of a longer one. As each hash covers all before, its last one says."""
    others = [other for other in longer if other.chain == one.chain]
    if not others:
        return True
    reaching = next((other for other in reversed(others) if other.first <= one.last + 1), None)
    if reaching is None:
        begins = min(other.first for other in others)
        what = f"entries {one.last + 1} to {begins - 1} are missing before the chain goes on in another folder"
        one.report(one.folder, one.last + 1, None, what)
        return False
    again = _Reader(files, reaching.names, [Head(one.chain, one.last, one.hash, 0.0, one.folder)], reaching.folder)
    for _ in again.run():
        pass
    if not again.shown:
        one.report(one.folder, one.last, None, f"the chain contradicts its copy in {reaching.folder}")
        return False
    if any(n >= one.last for n in reaching.shown):
        one.shown.append(one.last)
    return True


def entries(files: Files, apart: Collection[str] = ()) -> Iterator[Entry]:
    """All entries that can be read, chain by chain, each once although several folders or archives may have it.

    What is damaged is left out, which `check` says. Folders that are `apart` are read whole, since nobody knows which
    of the copies hides something.
    """
    seen: dict[str, list[range]] = {}
    for folder, names in _folders(files).items():
        reader, before, mine = _Reader(files, names, (), folder), list[range](), list[range]()
        for entry in reader.run():
            if not mine and folder not in apart:
                before = seen.get(reader.chain, [])
            if mine and mine[-1].stop == entry.n:
                mine[-1] = range(mine[-1].start, entry.n + 1)
            else:
                mine.append(range(entry.n, entry.n + 1))
            if not any(entry.n in known for known in before):
                yield entry
        if reader.chain and folder not in apart:
            seen.setdefault(reader.chain, []).extend(mine)


def ids(files: Files) -> set[str]:
    """The ids of all chains that there is a segment of, from the headers that can be read."""
    found = set()
    for opened in files.values():
        with contextlib.suppress(OSError), opened() as file:
            header = header_of(file.readline(LINE_BYTES_MAX))
            if header is not None:
                found.add(header.chain)
    return found


def _folders(files: Files) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        found.setdefault(str(PurePosixPath(name).parent), []).append(name)
    return found


class _Reader:
    """Walks one chain."""

    def __init__(self, files: Files, names: Sequence[str], heads: Sequence[Head], folder: str) -> None:
        self.folder = folder
        self.names = names
        self._files = files
        self._heads = heads
        self.findings: list[Finding] = []
        self.chain, self.hash = "", ""
        self.first, self.last = 0, 0
        self.shown: list[int] = []  # The numbers of recorded heads that the chain has.
        self._begun_at = 0.0
        self._pruned_by: Entry | None = None  # Which says that the log itself has forgotten what is not there.
        self._running: list[str] = []  # The hashes that the next entry may go by; after damage more than one.
        self._sound = True  # Whether the line before was.

    def run(self) -> Iterator[Entry]:
        """Every entry that checks."""
        for name in self.names:
            stem = PurePosixPath(name).stem
            if not (stem.isascii() and stem.isdigit()):
                self.report(name, None, None, "it is not named as a segment is")
                continue
            try:
                yield from self._segment(name, int(stem))
            except OSError as error:
                self.report(name, None, None, f"it cannot be read: {error.strerror or error}")

    def look_at_beginning(self) -> None:
        """Find what is not there before the first entry, unless the log itself has forgotten it and a head shows that.

        An entry that says so is easily made, and the service goes on behind it. What it has recorded is not.
        """
        if self.first <= 1:
            return
        if self._pruned_by is None:
            self.report(self.names[0], 1, None, f"entries 1 to {self.first - 1} at the beginning are missing")
        elif not self._is_believed(self._pruned_by):
            what = f"entries 1 to {self.first - 1} are gone, and no recorded head shows that the log has forgotten them"
            self.report(self.names[0], 1, None, what)

    def _is_believed(self, pruned: Entry) -> bool:
        heads = [head for head in self._heads if head.chain == self.chain]
        if self._recorded is not None:
            return self._recorded >= self.first - 1
        return not heads or max(self.shown, default=0) >= pruned.n

    @property
    def _recorded(self) -> int | None:
        """Up to which entry the service has recorded that it had this chain forget, None where no head says."""
        told = [head.forgotten for head in self._heads if head.chain == self.chain]
        return max((one for one in told if one is not None), default=None)

    @property
    def forgotten(self) -> Forgotten | None:
        """What the chain says of its beginning."""
        if self.first <= 1 or self._pruned_by is None:
            return None
        at = self._pruned_by.at
        return Forgotten(self.first - 1, at, at - self._begun_at, (self._recorded or 0) >= self.first - 1)

    def _segment(self, name: str, first: int) -> Iterator[Entry]:
        with self._files[name]() as file:
            header = file.readline(LINE_BYTES_MAX)
            self._begin(name, first, header)
            offset = len(header)
            while line := file.readline(LINE_BYTES_MAX):
                entry = self._look(name, offset, line)
                offset += len(line)
                if entry is not None:
                    yield entry

    def _begin(self, name: str, first: int, line: bytes) -> None:
        header = header_of(line)
        if header is None or header.first != first or (self.chain and header.chain != self.chain):
            self.report(name, first, 0, "the header is not as it was written")
        if self.first == 0:
            self.first, self.last = first, first - 1
            if header is not None:
                self.chain, self.hash, self._begun_at = header.chain, header.previous, header.at
                self._compare(name, 0, first - 1, header.previous)
        elif first > self.last + 1:
            self.report(name, self.last + 1, None, f"entries {self.last + 1} to {first - 1} are missing")
        elif first <= self.last or (header is not None and header.previous not in (self.hash, *self._running)):
            self.report(name, first, 0, "the segment does not go on from the one before")
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
            self._compare(name, offset, entry.n, stated)
            if self._pruned_by is None and entry.action == "pruned" and _number(entry.target) >= self.first - 1:
                self._pruned_by = entry
            return entry
        what = "the entry is not as it was written" if line.endswith(b"\n") else "the entry is not whole"
        self.report(name, expected, offset, what)
        # The next one goes by the hash that stands here, or by the right one, whichever of them was changed.
        self._running = ([stated] * bool(found) + [seal(one, body) for one in self._running] + self._running)[
            :_WAYS_MAX
        ]
        self.last, self.hash, self._sound = expected, stated or self.hash, False
        return None

    def _compare(self, name: str, offset: int, n: int, stated: str) -> None:
        for head in self._heads:
            if (head.chain, head.n) != (self.chain, n):
                continue
            if head.hash == stated:
                self.shown.append(n)
            else:
                self.report(name, n, offset, "the chain was written anew: a recorded head has another hash")

    def report(self, name: str, entry: int | None, offset: int | None, what: str) -> None:
        """Name a place, as long as there are not too many."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(name, entry, offset, what))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else 0
