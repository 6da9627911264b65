"""What arrived at the stand-ins: exact counts, duplicates, and the last messages, kept across a kill.

A message is *delivered* when the stand-in took responsibility for it, whether or not the client was told. Counts:
`requests` = `accepted` (answered with success) + `rejected` (answered with an error) + `unanswered`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bellbuoy.clock import Clock

ITEMS_MAX = 200_000
"""Messages whose summary is kept for one stand-in; counts go on beyond it."""

_DUPLICATES_NAMED_MAX = 10_000
_ERRORS_NAMED_MAX = 200
_TEXT_MAX = 500
_SUMMARY_BYTES_MAX = 16_384


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request, summed up.

    `at` is in epoch seconds; `error` None means success; duplicates are counted by `collapse_id` and by `item_id`,
    each together with `endpoint`. `n` numbers the requests of one provider from 0.
    """

    provider: str
    at: float
    id: str = ""
    endpoint: str = ""
    collapse_id: str | None = None
    item_id: str | None = None
    title: str | None = None
    body: str | None = None
    data: dict[str, Any] | None = None
    priority: str | None = None
    headers: dict[str, str] | None = None
    notification: str | None = None
    status: int = 200
    error: str | None = None
    delivered: bool = False
    answered: bool = True
    n: int = 0


class _Line(msgspec.Struct, omit_defaults=True):
    """A line of the log that is not an item: a correction or a wish to forget."""

    provider: str
    unanswered: int | None = None
    error: str | None = None
    forget: bool = False


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Item)
_line_decoder = msgspec.json.Decoder(_Line)


class Journal:
    """The file `received.ndjson`: appended in batches without fsync, so it outlives the process, not the machine.

    Args:
        path: None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd: int | None = None
        self._lines: list[bytes] = []
        self._due = False

    def load(self) -> Iterator[Item | _Line]:
        """Every whole line of the file, in order; a torn last line is cut off. Then open it for appending."""
        if self._path is None:
            return
        self._path.touch(mode=0o600)
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    yield _decoder.decode(line) if b'"at":' in line else _line_decoder.decode(line)
                except msgspec.MsgspecError:
                    continue
        os.truncate(self._path, whole)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def append(self, record: bytes) -> None:
        """Write one encoded record, at the latest at the end of this turn of the loop."""
        if self._fd is None:
            return
        self._lines.append(record)
        self._lines.append(b"\n")
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand what is buffered to the operating system. A full disk loses the log, not the service under test."""
        self._due = False
        if self._fd is None or not self._lines:
            return
        data = b"".join(self._lines)
        self._lines.clear()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return

    def truncate(self) -> None:
        """Empty the file."""
        self._lines.clear()
        if self._fd is not None:
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Received:
    """The log of one stand-in.

    Args:
        provider: whose.
        clock: for `at`.
        journal: where each item is also written.
        items_max: summaries kept.
    """

    def __init__(self, provider: str, clock: Clock, journal: Journal, items_max: int = ITEMS_MAX) -> None:
        self.provider = provider
        self._clock = clock
        self._journal = journal
        self._items_max = items_max
        self._reset()

    def _reset(self) -> None:
        self.requests = self.accepted = self.rejected = self.unanswered = 0
        self.count = self.unique = self.duplicate_count = self.duplicate_by_id_count = 0
        self._errors: Counter[str] = Counter()
        self._items: deque[bytes] = deque(maxlen=self._items_max)
        # Fingerprints instead of names: eight bytes of a message's identity are enough to tell it from others.
        self._seen: set[int] = set()
        self._seen_ids: set[int] = set()
        self._duplicates: dict[str, int] = {}
        self._duplicates_by_id: dict[str, int] = {}

    def add(self, item: Item) -> Item:
        """Count and keep `item`; numbers it. Give it to `take_back` when the answer could not be handed over."""
        item.at = self._clock.time()
        item.n = self.requests
        raw = _summary(item)
        self._journal.append(raw)
        self._apply(item, raw)
        return item

    def take_back(self, item: Item) -> None:
        """Count an accepted or rejected `item` as unanswered: the client had gone before the answer."""
        if not item.answered:
            return
        item.answered = False
        self._journal.append(_encoder.encode(_Line(self.provider, unanswered=item.n, error=item.error)))
        self._unanswer(item.n, item.error)

    def replay(self, record: Item | _Line) -> None:
        """Take in one record of a journal written before."""
        if isinstance(record, Item):
            self._apply(record, _summary(record))
        elif record.forget:
            self._reset()
        elif record.unanswered is not None:
            self._unanswer(record.unanswered, record.error)

    def forget(self) -> None:
        """Back to nothing received."""
        self._reset()
        self._journal.append(_encoder.encode(_Line(self.provider, forget=True)))

    def empty_journal(self) -> None:
        """Empty the file that all logs share; for when nothing is remembered of any provider."""
        self._journal.truncate()

    def _unanswer(self, n: int, error: str | None) -> None:
        self.unanswered += 1
        if error is None:
            self.accepted -= 1
        else:
            self.rejected -= 1
            self._errors[error] -= 1
        # The summary may have made room for later ones; the counts are right all the same.
        position = n - (self.requests - len(self._items))
        if 0 <= position < len(self._items):
            item = _decoder.decode(self._items[position])
            item.answered = False
            self._items[position] = _encoder.encode(item)

    def _apply(self, item: Item, raw: bytes) -> None:
        self.requests += 1
        if not item.answered:
            self.unanswered += 1
        elif item.error is None:
            self.accepted += 1
        else:
            self.rejected += 1
            if item.error in self._errors or len(self._errors) < _ERRORS_NAMED_MAX:
                self._errors[item.error] += 1
        if item.delivered:
            self._deliver(item)
        # Encoded summaries take a fraction of the memory of objects.
        self._items.append(raw)

    def _deliver(self, item: Item) -> None:
        self.count += 1
        if _is_repeated(self._seen, item.endpoint, item.collapse_id):
            self.duplicate_count += 1
            _name(self._duplicates, item.collapse_id or "")
        else:
            self.unique += 1
        if _is_repeated(self._seen_ids, item.endpoint, item.item_id):
            self.duplicate_by_id_count += 1
            _name(self._duplicates_by_id, item.item_id or "")

    def counts(self) -> dict[str, Any]:
        """The numbers alone."""
        return {
            "count": self.count,
            "requests": self.requests,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "unanswered": self.unanswered,
            "unique": self.unique,
            "duplicate_count": self.duplicate_count,
            "duplicate_by_id_count": self.duplicate_by_id_count,
        }

    def describe(self, limit: int = 100, offset: int = 0, token: str | None = None) -> dict[str, Any]:
        """Numbers, duplicates, errors and up to `limit` items, oldest first, after skipping `offset`.

        Args:
            token: only items whose endpoint is exactly this; None all.
        """
        items: list[dict[str, Any]] = []
        needle = None if token is None else _encoder.encode(token)[1:-1]
        skipped = 0
        for raw in self._items:
            if len(items) >= limit:
                break
            if needle is not None and needle not in raw:
                continue
            if needle is None and skipped < offset:
                skipped += 1
                continue
            item = _decoder.decode(raw)
            if token is not None and item.endpoint != token:
                continue
            if skipped < offset:
                skipped += 1
                continue
            items.append(_shown(item))
        return {
            "provider": self.provider,
            **self.counts(),
            "duplicates": dict(self._duplicates),
            "duplicates_by_id": dict(self._duplicates_by_id),
            "errors": {code: times for code, times in self._errors.items() if times},
            "items": items,
        }


def _shown(item: Item) -> dict[str, Any]:
    shown: dict[str, Any] = {field: getattr(item, field) for field in item.__struct_fields__}
    at = datetime.fromtimestamp(item.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**shown, "at": at, "at_s": item.at}


def _summary(item: Item) -> bytes:
    """`item` as JSON, with what is too long for a summary cut or left out."""
    if item.title is not None and len(item.title) > _TEXT_MAX:
        item.title = item.title[:_TEXT_MAX]
    if item.body is not None and len(item.body) > _TEXT_MAX:
        item.body = item.body[:_TEXT_MAX]
    raw = _encoder.encode(item)
    if len(raw) > _SUMMARY_BYTES_MAX:
        item.data = None
        item.headers = None
        raw = _encoder.encode(item)
    return raw


def _is_repeated(seen: set[int], endpoint: str, identity: str | None) -> bool:
    """Whether this identity came to this endpoint before; one without identity never did."""
    if identity is None:
        return False
    fingerprint = hash((endpoint, identity))
    if fingerprint in seen:
        return True
    seen.add(fingerprint)
    return False


def _name(duplicates: dict[str, int], name: str) -> None:
    if name in duplicates or len(duplicates) < _DUPLICATES_NAMED_MAX:
        duplicates[name] = duplicates.get(name, 0) + 1
