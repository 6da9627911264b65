"""What the HTTP/1.1 and HTTP/2 servers have in common: a request, an answer, and the exchange that joins them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode

BODY_BYTES_MAX = 1_048_576
"""The largest request body a stand-in reads; every real limit it imitates lies below."""


@dataclass(slots=True)
class HttpRequest:
    """One request as it arrived.

    `headers` have lower-case names; of a repeated header the last value is kept and its name is in `repeated`.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = b""
    repeated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One answer: `headers` without `content-length`, which the server adds."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = field(default=())


class Connection(ABC):
    """One client's connection to a listener."""

    @abstractmethod
    def close(self) -> None:
        """End it in the protocol's polite way, answering nothing more."""

    @abstractmethod
    def reset(self) -> None:
        """End it with a TCP reset, in the middle of whatever it was doing."""

    @abstractmethod
    def goaway(self, reason: str | None = None, *, refuse: Exchange | None = None) -> None:
        """Announce the end: answer what was begun, take nothing new, then close.

        Args:
            reason: goes into the announcement where the protocol has room for it; None sends none.
            refuse: an exchange that is declared never to have been looked at; it gets no answer.
        """


class Exchange(ABC):
    """One request and the duty to end it, once, by an answer, by silence or by violence."""

    __slots__ = ("connection", "gone", "request")

    def __init__(self, connection: Connection, request: HttpRequest) -> None:
        self.connection = connection
        self.request = request
        self.gone = False  # The client left, or the exchange was ended: nothing can be answered any more.

    @abstractmethod
    def answer(self, answer: HttpAnswer) -> None:
        """Send the answer; nothing happens when the client has gone."""

    @abstractmethod
    def drop(self) -> None:
        """End this exchange alone without an answer (a stream reset; for HTTP/1.1 a closed connection)."""


Handler = Callable[[Exchange], None]
"""Takes an exchange and ends it, at once or later; it must not block."""


def reset_transport(transport: asyncio.BaseTransport) -> None:
    """Close the transport's socket with a TCP reset instead of an orderly end."""
    sock: Any = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        # A duplicate reaches the socket option on every event loop; uvloop's own wrapper may refuse it.
        with socket.socket(fileno=os.dup(sock.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "abort"):
        transport.abort()


def document_of(body: bytes) -> object:
    """What a body of JSON says; None where it is none."""
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
