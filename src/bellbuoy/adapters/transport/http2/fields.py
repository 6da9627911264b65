"""Header fields of HTTP/2 without the dynamic table of HPACK (RFC 7541), so that no block depends on another.

A request's fields are the same from one message to the next but for a few, so what is encoded once can be used again;
and since we tell the peer to keep no table either, an answer's fields need not be decoded until somebody asks for one.
A delivered message asks for none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import hpack

from bellbuoy.adapters.transport.http2.frames import COMPRESSION_ERROR, PROTOCOL_ERROR, ProtocolViolation
from bellbuoy.adapters.transport.port import Headers
from bellbuoy.errors import Permanent

HEADER_LIST_BYTES_MAX = 32_768
"""The most that we decode of one answer's fields."""

NO_TABLE = b"\x20"
"""Dynamic table size update to 0 (RFC 7541, 6.3), which begins the first block of a connection."""

_METHODS = {"GET": b"\x82", "POST": b"\x83"}
_SCHEME_HTTPS = b"\x87"
_STATIC_NAMES = {":authority": 1, ":path": 4, "accept": 19, "authorization": 23, "content-type": 31, "user-agent": 58}
_STATIC_STATUSES = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")


def encode_request(method: str, authority: str, path: str) -> bytes:
    """The pseudo-header fields of a request over https. Raises Permanent when one cannot be written."""
    return _METHODS[method] + _SCHEME_HTTPS + _field(":authority", authority) + _field(":path", path)


def encode(headers: Headers) -> bytes:
    """The other fields. Raises Permanent when a name or value cannot be a header's."""
    for name, value in headers:
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise Permanent("the message cannot be written as an HTTP request", error_code="unsendable")
    return b"".join(_field(name, value) for name, value in headers)


def _field(name: str, value: str) -> bytes:
    # What identifies somebody is marked as never to be indexed, for whoever passes it on (RFC 7541, 7.1.3).
    kind = 0x10 if name in ("authorization", ":path") else 0x00
    index = _STATIC_NAMES.get(name)
    start = _integer(0, kind, 4) + _text(name) if index is None else _integer(index, kind, 4)
    return start + _text(value)


def _text(text: str) -> bytes:
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise Permanent("the message cannot be written as an HTTP request", error_code="unsendable") from None
    return _integer(len(data), 0x00, 7) + data


def _integer(value: int, first: int, bits: int) -> bytes:
    """An integer behind the high bits of `first` (RFC 7541, 5.1)."""
    top = (1 << bits) - 1
    if value < top:
        return bytes((first | value,))
    out = [first | top]
    value -= top
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def status_of(block: bytes) -> int:
    """The status that a block of answer fields begins with. Raises ProtocolViolation when there is none."""
    first = block.lstrip(NO_TABLE)[:1]
    known = _STATIC_STATUSES.get(first[0]) if first else None
    if known is not None:
        return known
    try:
        return int(_decode(block)[":status"])
    except (KeyError, ValueError):
        raise ProtocolViolation(PROTOCOL_ERROR, "an answer without a status") from None


class AnswerHeaders(Mapping[str, str]):
    """An answer's fields, decoded when the first one is asked for; of a name given twice the first counts.

    A block that cannot be decoded has no fields: the answer's status and body have come whole by then, and what became
    of the message must not hang on a header.
    """

    __slots__ = ("_block", "_fields")

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._fields: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def _decoded(self) -> dict[str, str]:
        if self._fields is None:
            try:
                fields = _decode(self._block)
            except ProtocolViolation:
                fields = {}
            self._fields = {name: value for name, value in fields.items() if not name.startswith(":")}
        return self._fields


def _decode(block: bytes) -> dict[str, str]:
    decoder = hpack.Decoder(max_header_list_size=HEADER_LIST_BYTES_MAX)
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    fields: dict[str, str] = {}
    try:
        for name, value in decoder.decode(block, raw=True):
            fields.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    except hpack.HPACKError as error:
        raise ProtocolViolation(COMPRESSION_ERROR, "header fields that cannot be decoded") from error
    return fields
