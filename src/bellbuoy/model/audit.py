"""What the audit log says, and the chain that makes every later edit show.

A chain is a series of segments. A segment is a header and entries, a line each: a SHA-256 in hex, a space and the JSON.
Each hash is over the hash before it, as it is written, and the very bytes of the JSON; before a header is the last hash
of the segment before, which the header names too. So whoever changes a byte has to write everything behind it anew, and
then the heads that are kept elsewhere do not agree.
"""

from __future__ import annotations

import hashlib
import string

import msgspec
from msgspec import Struct, field

FORMAT = 1
LINE_BYTES_MAX = 1024 * 1024
"""Far above any entry; a longer line is damage."""

USERS_MAX = 1_000
"""The most users that one entry names."""

_HEX = frozenset(string.hexdigits.lower())
_DIGEST = 64


class Entry(Struct, frozen=True, omit_defaults=True):
    """One thing that was asked for, or many of the same kind within a second. Never an address, a token or content.

    Args:
        n: its number in its chain, from 1; 0 until it is written.
        at: when, in epoch seconds; of several the first, and `until` the last.
        action: the method and the route, or what the log itself has done: `torn` (a crash had left so many bytes of a
            last entry that nobody was told of) and `pruned` (entries up to `target` were older than is kept).
        status: the answer's.
        key: the id of the key that asked, None when none was known.
        tenant: whose data.
        target: what it was about, besides users: a key, a flag, a mode.
        users: whom it touched, and how often.
        fields: what of theirs was shown or changed.
        count: how many requests this stands for.
        unnamed: how often it touched somebody who has no user id, or for whom there was no room.
    """

    n: int
    at: float
    action: str
    status: int = 0
    key: str | None = None
    tenant: str | None = None
    target: str | None = None
    users: dict[str, int] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    count: int = 1
    until: float | None = None
    unnamed: int = 0

    @property
    def last(self) -> float:
        """When the last of what it stands for was, in epoch seconds."""
        return self.at if self.until is None else self.until


class Header(Struct, frozen=True):
    """The first line of a segment: of which chain, from which entry on, after which hash, since when."""

    chain: str
    first: int
    previous: str
    at: float
    format: int = FORMAT


class Head(Struct, frozen=True):
    """How far a chain is: its last entry and the hash of that. `where` is the machine and the folder it is in.

    `forgotten` is the last entry that the service itself has let the log forget, 0 for none; None when nobody knows.
    """

    chain: str
    n: int
    hash: str
    at: float
    where: str
    forgotten: int | None = None


_encode = msgspec.json.Encoder(order="deterministic").encode
_entry = msgspec.json.Decoder(Entry).decode
_header = msgspec.json.Decoder(Header).decode


def sealed_header(header: Header) -> tuple[str, bytes]:
    """The header's hash, which the segment's first entry goes by, and its line."""
    return _line(header.previous, _encode(header))


def sealed(previous: str, entry: Entry) -> tuple[str, bytes]:
    """The entry's hash, and its line."""
    return _line(previous, _encode(entry))


def _line(previous: str, body: bytes) -> tuple[str, bytes]:
    digest = seal(previous, body)
    return digest, digest.encode() + b" " + body + b"\n"


def seal(previous: str, body: bytes) -> str:
    """The hash of an entry with this JSON after that hash."""
    return hashlib.sha256(previous.encode() + body).hexdigest()


def parts(line: bytes) -> tuple[str, bytes] | None:
    """The hash and the JSON of a line, None when it is none."""
    stated = line[:_DIGEST].decode("latin-1")
    if not line.endswith(b"\n") or line[_DIGEST : _DIGEST + 1] != b" " or not _HEX.issuperset(stated):
        return None
    return stated, line[_DIGEST + 1 : -1]


def entry_of(body: bytes) -> Entry | None:
    """The entry, None when the JSON is not one."""
    try:
        return _entry(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def header_of(line: bytes) -> Header | None:
    """The header, None when the line is not one as it was written, of a format that is known."""
    found = parts(line)
    try:
        header = _header(found[1]) if found is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if found is None or header is None or header.format != FORMAT or seal(header.previous, found[1]) != found[0]:
        return None
    return header
