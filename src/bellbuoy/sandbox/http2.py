"""An HTTP/2 server over the h2 state machine: live limits, GOAWAY with a reason, resets, and speed.

The facts of the protocol are RFC 9113's. One `write` carries the frames of one batch of input; answers that come
later share the write of their turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

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

_LOG = logging.getLogger("bellbuoy.sandbox")

_WINDOW_BYTES = 16_777_216
_REPLENISH_BYTES = _WINDOW_BYTES // 4
_CLEAN_EVERY = 64
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class Http2Settings:
    """How one listener treats its connections.

    Attributes:
        streams_max: concurrent streams a connection may have.
        streams_at_first: the limit until `Http2Connection.open_up`; None starts with `streams_max`.
        excess: what a stream above the limit gets: `refuse` (REFUSED_STREAM, safe to send again) or `goaway`.
        idle_s: seconds without a frame after which the connection is closed; None never.
        answered: called before every write, so that what an answer promises can be put on disk first.
    """

    streams_max: int = 1_000
    streams_at_first: int | None = None
    excess: Literal["refuse", "goaway"] = "refuse"
    idle_s: float | None = None
    answered: Callable[[], None] | None = None


class _Engine(H2Connection):
    """h2's state machine with our own stream limit: h2 would end the connection where the RFC asks for one stream.

    It would also count all open streams at every request, which is quadratic when answers are slow.
    """

    _requests = 0

    @property
    def open_inbound_streams(self) -> int:
        self._requests += 1
        if self._requests % _CLEAN_EVERY == 0:
            # The base class forgets closed streams as it counts.
            _ = super().open_inbound_streams
        return 0


class _Http2Exchange(Exchange):
    __slots__ = ("chunks", "size", "stream_id")

    connection: Http2Connection

    def __init__(self, connection: Http2Connection, request: HttpRequest, stream_id: int) -> None:
        super().__init__(connection, request)
        self.stream_id = stream_id
        self.chunks: list[bytes] = []
        self.size = 0

    def answer(self, answer: HttpAnswer) -> None:
        if not self.gone:
            self.connection.send_answer(self, answer)

    def drop(self) -> None:
        if not self.gone:
            self.connection.reset_stream(self, ErrorCodes.CANCEL)


class Http2Connection(asyncio.Protocol, Connection):
    """One client's connection: a protocol for a `Listener`.

    Args:
        listener: the listener to be counted by.
        handler: gets each complete request.
        settings: limits.
    """

    def __init__(self, listener: Listener, handler: Handler, settings: Http2Settings) -> None:
        self._listener = listener
        self._handler = handler
        self._settings = settings
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = _Engine(config)
        self._open: dict[int, _Http2Exchange] = {}
        self._waiting_bodies: dict[int, bytes] = {}
        # A limit counts once the client has acknowledged it: before, it cannot know (RFC 9113, 6.5.3).
        self._announced: list[int | None] = []
        self._limit: int | None = None
        self._opened_up = settings.streams_at_first is None
        self._unreplenished = 0
        self._in_batch = False
        self._flush_due = False
        self._last_stream_id: int | None = None
        self._last_taken = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._active_at = 0.0

    # -- the transport's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            # Neither stand-in speaks anything but HTTP/2.
            self._transport.close()
            self._transport = None
            return
        self._listener.connections.add(self)
        first = self._settings.streams_at_first or self._settings.streams_max
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: first,
                SettingCodes.INITIAL_WINDOW_SIZE: BODY_BYTES_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: 65_536,
            },
        )
        self._announced.append(first)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._active_at = self._loop.time()
        if self._settings.idle_s is not None:
            self._idle_timer = self._loop.call_later(self._settings.idle_s, self._idle_check)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.connections.discard(self)
        for timer in (self._idle_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        for exchange in self._open.values():
            exchange.gone = True
        self._open.clear()
        self._waiting_bodies.clear()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._active_at = self._loop.time()
        self._in_batch = True
        try:
            for event in self._h2.receive_data(data):
                if self._transport is None:
                    return
                if isinstance(event, DataReceived):
                    self._data(event)
                elif isinstance(event, StreamEnded):
                    self._complete(event.stream_id)
                elif isinstance(event, RequestReceived):
                    self._begin(event)
                else:
                    self._rare(event)
        except ProtocolError as error:
            _LOG.debug("http2 protocol error", exc_info=error)
            self._in_batch = False
            self.close()
            return
        finally:
            self._in_batch = False
        if self._unreplenished >= _REPLENISH_BYTES:
            self._h2.increment_flow_control_window(self._unreplenished)
            self._unreplenished = 0
        self._flush()

    def _rare(self, event: Event) -> None:
        if isinstance(event, StreamReset):
            self._forget(event.stream_id)
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._send_waiting_bodies()
        elif isinstance(event, SettingsAcknowledged):
            self._acknowledged()
        elif isinstance(event, ConnectionTerminated):
            self.close()

    # -- Connection ----------------------------------------------------------------------------------------------

    @property
    def streams_open(self) -> int:
        """Requests begun and not ended."""
        return len(self._open)

    def open_up(self) -> None:
        """Raise the limit of concurrent streams from `streams_at_first` to `streams_max`, live; once."""
        if self._opened_up or self._transport is None or self._last_stream_id is not None:
            return
        self._opened_up = True
        self._announced.append(self._settings.streams_max)
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: self._settings.streams_max})
        self._schedule()

    def goaway(self, reason: str | None = None, *, refuse: Exchange | None = None) -> None:
        if self._transport is None or self._last_stream_id is not None:
            return
        # Requests that came in the same read and are not looked at yet will not be: h2 has counted them already.
        last = self._last_taken
        refused = cast(_Http2Exchange | None, refuse)
        if refused is not None:
            last = max(0, min(last, refused.stream_id - 2))
        self._last_stream_id = last
        for stream_id, exchange in list(self._open.items()):
            if stream_id > last:
                exchange.gone = True
                del self._open[stream_id]
        # h2 would take GOAWAY for the end of everything; the RFC lets streams up to the last id be answered.
        frame = GoAwayFrame(0, last_stream_id=last, additional_data=(reason or "").encode())
        self._flush(frame.serialize())
        self._close_when_drained()

    def close(self) -> None:
        if self._transport is None:
            return
        for exchange in self._open.values():
            exchange.gone = True
        self._open.clear()
        self._flush()
        self._transport.close()

    def reset(self) -> None:
        if self._transport is None:
            return
        for exchange in self._open.values():
            exchange.gone = True
        self._open.clear()
        reset_transport(self._transport)
        self._transport = None

    # -- answers -------------------------------------------------------------------------------------------------

    def send_answer(self, exchange: _Http2Exchange, answer: HttpAnswer) -> None:
        """Queue the frames of `answer`; they go out with the batch or at the end of this turn of the loop."""
        exchange.gone = True
        stream_id = exchange.stream_id
        if self._transport is None or self._open.pop(stream_id, None) is None:
            return
        headers = [(b":status", b"%d" % answer.status)]
        headers.extend((name.encode(), value.encode()) for name, value in answer.headers)
        if answer.body:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        try:
            self._h2.send_headers(stream_id, headers, end_stream=not answer.body)
            if answer.body:
                self._send_body(stream_id, answer.body)
        except ProtocolError as error:
            # The client has reset the stream or gone while the answer was being made.
            _LOG.debug("answer not sent", exc_info=error)
        self._schedule()
        self._close_when_drained()

    def reset_stream(self, exchange: _Http2Exchange, code: ErrorCodes) -> None:
        """End one stream without an answer."""
        exchange.gone = True
        if self._transport is None or self._open.pop(exchange.stream_id, None) is None:
            return
        self._reset_id(exchange.stream_id, code)
        self._schedule()
        self._close_when_drained()

    def _send_body(self, stream_id: int, body: bytes) -> None:
        while body:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._waiting_bodies[stream_id] = body
                return
            chunk, body = body[:room], body[room:]
            self._h2.send_data(stream_id, chunk, end_stream=not body)

    def _send_waiting_bodies(self) -> None:
        waiting, self._waiting_bodies = self._waiting_bodies, {}
        for stream_id, body in waiting.items():
            try:
                self._send_body(stream_id, body)
            except ProtocolError as error:
                _LOG.debug("rest of an answer not sent", exc_info=error)

    # -- requests ------------------------------------------------------------------------------------------------

    def _begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if self._last_stream_id is not None:
            # Above the last stream id of our GOAWAY: never looked at, as promised there.
            return
        if self._limit is not None and len(self._open) >= self._limit:
            if self._settings.excess == "goaway":
                self.goaway("exceeded_max_concurrent_streams")
            else:
                self._reset_id(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        request = _request(cast("Iterable[tuple[bytes, bytes]]", event.headers))
        self._last_taken = stream_id
        self._open[stream_id] = _Http2Exchange(self, request, stream_id)

    def _data(self, event: DataReceived) -> None:
        self._unreplenished += event.flow_controlled_length
        exchange = self._open.get(event.stream_id)
        if exchange is None:
            return
        exchange.chunks.append(event.data)
        exchange.size += len(event.data)
        if exchange.size >= BODY_BYTES_MAX:
            self.reset_stream(exchange, ErrorCodes.ENHANCE_YOUR_CALM)

    def _complete(self, stream_id: int) -> None:
        exchange = self._open.get(stream_id)
        if exchange is None:
            return
        chunks = exchange.chunks
        exchange.request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        exchange.chunks = []
        try:
            self._handler(exchange)
        except Exception:
            _LOG.exception("a sandbox handler failed")
            exchange.answer(HttpAnswer(500))

    def _forget(self, stream_id: int) -> None:
        self._waiting_bodies.pop(stream_id, None)
        exchange = self._open.pop(stream_id, None)
        if exchange is not None:
            exchange.gone = True
        self._close_when_drained()

    def _acknowledged(self) -> None:
        if self._announced:
            self._limit = self._announced.pop(0)

    def _reset_id(self, stream_id: int, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(stream_id, code)
        except ProtocolError as error:
            _LOG.debug("stream already closed", exc_info=error)

    # -- writing and ending --------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._in_batch and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self, more: bytes = b"") -> None:
        self._flush_due = False
        data = self._h2.data_to_send() + more
        if data and self._transport is not None:
            if self._settings.answered is not None:
                self._settings.answered()
            self._transport.write(data)

    def _close_when_drained(self) -> None:
        if self._last_stream_id is None or self._open or self._end_timer is not None:
            return
        # Closing at once would answer bytes still on their way with a TCP reset, which could overtake the GOAWAY.
        self._end_timer = self._loop.call_later(_LINGER_S, self.close)

    def _idle_check(self) -> None:
        idle_s = self._settings.idle_s
        if idle_s is None or self._transport is None:
            return
        left = self._active_at + idle_s - self._loop.time()
        if left <= 0 and not self._open:
            self.goaway()
            return
        self._idle_timer = self._loop.call_later(max(left, 1.0), self._idle_check)


def _request(pairs: Iterable[tuple[bytes, bytes]]) -> HttpRequest:
    headers: dict[str, str] = {}
    repeated: set[str] = set()
    for raw_name, raw_value in pairs:
        name = raw_name.decode("latin-1")
        if name in headers:
            repeated.add(name)
        headers[name] = raw_value.decode("utf-8", "replace")
    path, _, query = headers.pop(":path", "").partition("?")
    method = headers.pop(":method", "")
    return HttpRequest(method, path, query, headers, repeated=frozenset(repeated))
