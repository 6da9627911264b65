"""A small HTTP/1.1 server: for the plain-HTTP stand-ins, and as a carrier for one ASGI application.

Requests of a connection are handled one after the other, so an answer that is held holds those behind it, as a real
keep-alive connection does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools

from bellbuoy.sandbox.http import (
    BODY_BYTES_MAX,
    Connection,
    Exchange,
    Handler,
    HttpAnswer,
    HttpRequest,
    reset_transport,
)
from bellbuoy.sandbox.listener import Listener
from bellbuoy.sandbox.station import Background

_LOG = logging.getLogger("bellbuoy.sandbox")
_PIPELINED_MAX = 64
_PHRASES = {status.value: status.phrase for status in HTTPStatus}

AsgiApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


class _Http1Exchange(Exchange):
    __slots__ = ("keep_alive",)

    connection: Http1Connection

    def __init__(self, connection: Http1Connection, request: HttpRequest, keep_alive: bool) -> None:
        super().__init__(connection, request)
        self.keep_alive = keep_alive

    def answer(self, answer: HttpAnswer) -> None:
        if not self.gone:
            self.connection.send_answer(self, answer)

    def drop(self) -> None:
        if not self.gone:
            self.connection.close()


class Http1Connection(asyncio.Protocol, Connection):
    """One client's connection: a protocol for a `Listener`."""

    def __init__(self, listener: Listener, handler: Handler, answered: Callable[[], None] | None = None) -> None:
        self._listener = listener
        self._handler = handler
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeated: set[str] = set()
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiting: deque[_Http1Exchange] = deque()
        self._current: _Http1Exchange | None = None
        self._ending = False

    # -- the transport's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.connections.discard(self)
        self._abandon()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            _LOG.debug("not HTTP/1.1", exc_info=error)
            self._write_last(HttpAnswer(400))

    # -- the parser's side ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._repeated = set()
        self._chunks = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, raw_name: bytes, raw_value: bytes) -> None:
        name = raw_name.decode("latin-1").lower()
        if name in self._headers:
            self._repeated.add(name)
        self._headers[name] = raw_value.decode("utf-8", "replace")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > BODY_BYTES_MAX:
            self._write_last(HttpAnswer(413))
            return
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._transport is None or self._ending:
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            path,
            query,
            self._headers,
            b"".join(self._chunks),
            frozenset(self._repeated),
        )
        exchange = _Http1Exchange(self, request, self._parser.should_keep_alive())
        if self._current is None:
            self._start(exchange)
        elif len(self._waiting) < _PIPELINED_MAX:
            self._waiting.append(exchange)
        else:
            self.reset()

    def _start(self, exchange: _Http1Exchange) -> None:
        self._current = exchange
        try:
            self._handler(exchange)
        except Exception:
            _LOG.exception("a sandbox handler failed")
            exchange.answer(HttpAnswer(500))

    # -- Connection ----------------------------------------------------------------------------------------------

    def send_answer(self, exchange: _Http1Exchange, answer: HttpAnswer) -> None:
        """Write `answer`, then take the next pipelined request."""
        exchange.gone = True
        if self._transport is None or self._current is not exchange:
            return
        last = self._ending or not exchange.keep_alive
        self._write(answer, last=last, bare=exchange.request.method == "HEAD")
        self._current = None
        if last:
            self.close()
        elif self._waiting:
            self._start(self._waiting.popleft())

    def goaway(self, reason: str | None = None, *, refuse: Exchange | None = None) -> None:
        # HTTP/1.1 has no word for it but `Connection: close` on the last answer.
        if refuse is not None or self._current is None:
            self.close()
        else:
            self._ending = True

    def close(self) -> None:
        self._abandon()
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        self._abandon()
        if self._transport is not None:
            reset_transport(self._transport)
            self._transport = None

    def _abandon(self) -> None:
        for exchange in (self._current, *self._waiting):
            if exchange is not None:
                exchange.gone = True
        self._current = None
        self._waiting.clear()

    def _write_last(self, answer: HttpAnswer) -> None:
        if self._transport is not None:
            self._write(answer, last=True)
            self.close()

    def _write(self, answer: HttpAnswer, *, last: bool, bare: bool = False) -> None:
        if self._transport is None:
            return
        lines = [f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Status')}"]
        lines.extend(f"{name}: {value}" for name, value in answer.headers if name != "content-length")
        lines.append(f"content-length: {len(answer.body)}")
        if last:
            lines.append("connection: close")
        if self._answered is not None:
            self._answered()
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
        self._transport.write(head if bare else head + answer.body)


def asgi_handler(app: AsgiApp, background: Background) -> Handler:
    """A handler that gives each exchange to `app` as an ASGI `http` scope, in a task of `background`."""

    def handle(exchange: Exchange) -> None:
        background.start(_serve_asgi(app, exchange), "sandbox-control-request")

    return handle


async def _serve_asgi(app: AsgiApp, exchange: Exchange) -> None:
    request = exchange.request
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(request.path),
        "raw_path": request.path.encode("latin-1"),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode()) for name, value in request.headers.items()],
        "server": None,
        "client": None,
    }
    status = 500
    headers: list[tuple[str, str]] = []
    body: list[bytes] = []
    asked = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal asked
        if asked:
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.extend((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
        elif message["type"] == "http.response.body":
            body.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        _LOG.exception("the control application failed")
        exchange.answer(HttpAnswer(500))
        return
    exchange.answer(HttpAnswer(status, b"".join(body), tuple(headers)))
