"""uvicorn's HTTP protocol with the bounds it leaves to a proxy, and one write for each answer.

A request's head may have so many bytes and a request so many seconds, so that a client that never ends one holds
neither memory nor a connection. And what one turn of the loop writes goes out together: uvicorn writes an answer's head
and body apart, which costs a system call and a packet more for each.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 65_536
"""The largest head of a request."""

REQUEST_S_MAX = 30.0
"""Seconds in which a request must be whole, counted from the connection for the first one."""

FIRST_REQUEST_S = 0.5
"""Seconds that a connection without a request has to ask when the process stops."""

SWEEP_S = 5.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection; see the module."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._in_head = True
        self._begun: float | None = self.loop.time()
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("the request's head is too large")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._begun is None:
            self._begun = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._begun = None
        super().on_message_complete()

    def shutdown(self) -> None:
        """End the connection when its request is answered; one that has only just come is given time to ask.

        The process was told to stop while somebody connected, who must not be turned away for that.
        """
        if self.cycle is None and not self.transport.is_closing():
            self.loop.call_later(FIRST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()

    def overdue(self, now: float) -> bool:
        """Whether the request that began on this connection should have been whole by `now`, in the loop's time."""
        return self._begun is not None and now - self._begun > REQUEST_S_MAX


async def sweep(connections: set[Any]) -> None:
    """Close connections whose request does not come, every `SWEEP_S` seconds until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        now = loop.time()
        for connection in [c for c in connections if isinstance(c, BoundedProtocol) and c.overdue(now)]:
            connection.transport.close()


class _Gathering:
    """A transport that gathers what is written within one turn of the loop."""

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            if not self._transport.is_closing():
                self._transport.write(data)
