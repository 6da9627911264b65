"""One HTTP/2 connection as a client: streams, flow control, and what is known of each request when it ends."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from typing import cast

from msgspec import Struct

from bellbuoy.adapters.transport.http2 import fields, frames
from bellbuoy.adapters.transport.http2.frames import ProtocolViolation
from bellbuoy.adapters.transport.port import ANSWER_BYTES_MAX, Response
from bellbuoy.errors import OutcomeUnknown

STREAM_WINDOW_BYTES = 2 * ANSWER_BYTES_MAX
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
HEADER_BLOCK_BYTES_MAX = 65_536
PING_WAIT_S_MAX = 10.0
"""Seconds in which a ping must be answered."""

SILENT_MAX = 3
"""Requests given up on one after another, with no answer between, before the connection is left."""

STREAM_ID_LAST = 2**31 - 1
_GREATEST_WINDOW = 2**31 - 1
_REASON = re.compile(rb'"reason" *: *"([A-Za-z0-9]{1,80})"')


class Untouched(Exception):
    """The server has not processed the request (RFC 9113, 8.7), so it may be sent again.

    Args:
        code: stable, for the record of the attempt.
        why: what happened, to follow the server's name.
        sendings_max: how often one request may be sent at once in such a case. Behind an orderly GOAWAY it goes to
            another connection each time, so many times; to a server that refuses or sends us away, few or once.
    """

    def __init__(self, code: str, why: str, *, sendings_max: int = 3) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
        self.sendings_max = sendings_max


class NotHttp2(Exception):
    """The server negotiated HTTP/1.1."""


class Limits(Struct, frozen=True):
    """The bounds of a connection; see `Http2Transport`."""

    streams_max: int
    answer_timeout_s: float
    ping_s: float
    idle_s: float


class _Stream:
    __slots__ = ("answer", "block", "body", "id", "opened_at", "size", "status", "unsent", "window")

    def __init__(self, stream_id: int, answer: asyncio.Future[Response], opened_at: float, window: int) -> None:
        self.id = stream_id
        self.answer = answer
        self.opened_at = opened_at
        self.window = window
        self.unsent: bytes | None = None  # What flow control holds back, the end of the request with it.
        self.status = 0
        self.block = b""
        self.body: list[bytes] = []
        self.size = 0


class Http2Connection(asyncio.Protocol):
    """Carries requests from the moment the server's settings have come until either side says goodbye.

    Args:
        origin: the server, for messages: scheme, host and port only.
        limits: the bounds.
        on_room: called when a request may fit that did not before, and when the connection ends.
    """

    def __init__(self, origin: str, limits: Limits, on_room: Callable[[], None]) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False
        self._origin = origin
        self._limits = limits
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = frames.FrameReader()
        self._streams: dict[int, _Stream] = {}
        self._blocked: dict[int, _Stream] = {}
        self._out: list[bytes] = []
        self._next_id = 1
        self._streams_max = limits.streams_max
        self._window = self._stream_window = 65_535
        self._frame_bytes_max = frames.FRAME_BYTES_MAX
        self._received = 0
        self._unfinished: tuple[int, int, bytes] | None = None  # stream, flags, field block so far
        self._draining = self._paused = False
        self._silent = 0
        self._heard_at = self._used_at = self._loop.time()
        self._pinged_at: float | None = None
        self._ticking: asyncio.TimerHandle | None = None

    # What the pool sees.

    def room(self) -> int:
        """How many more requests it takes now."""
        if self._draining or self._paused:
            return 0
        return self._streams_max - len(self._streams)

    async def exchange(self, request: bytes, body: bytes | None) -> Response:
        """Send a request of an encoded field block and a body, and wait for the answer. There must be room.

        Raises:
            Untouched: the server did not process it.
            OutcomeUnknown: it may have, and no whole answer came.

        Cancellation: returns at once and tells the server; what it had read is not taken back.
        """
        stream = self._open(request, body)
        try:
            return await stream.answer
        except asyncio.CancelledError:
            self._give_up(stream)
            raise

    def close(self) -> None:
        """End the connection now; requests in flight end with `OutcomeUnknown`."""
        self._end(frames.NO_ERROR, "transport_closed", "was closed by this side")

    # Requests.

    def _open(self, request: bytes, body: bytes | None) -> _Stream:
        number, now = self._next_id, self._loop.time()
        if number == 1:
            request = fields.NO_TABLE + request
        self._next_id = number + 2
        if self._next_id > STREAM_ID_LAST:
            self._draining = True
        stream = _Stream(number, self._loop.create_future(), now, self._stream_window)
        self._streams[number] = stream
        self._used_at = now
        self._send(frames.headers_frames(number, request, end_stream=not body))
        if body:
            stream.unsent = body
            self._pump(stream)
        return stream

    def _pump(self, stream: _Stream) -> None:
        """Send as much of a request's body as the windows allow."""
        while stream.unsent is not None:
            size = min(len(stream.unsent), self._window, stream.window, self._frame_bytes_max)
            if size <= 0:
                self._blocked[stream.id] = stream
                return
            rest = stream.unsent[size:] or None
            flags = frames.END_STREAM if rest is None else 0
            self._send(frames.frame(frames.DATA, flags, stream.id, stream.unsent[:size]))
            self._window -= size
            stream.window -= size
            stream.unsent = rest
        self._blocked.pop(stream.id, None)

    def _give_up(self, stream: _Stream) -> None:
        if self._forget(stream):
            self._send(frames.rst_stream(stream.id, frames.CANCEL))
            self._silent += 1
            if self._silent >= SILENT_MAX:
                self._leave()

    def _forget(self, stream: _Stream) -> bool:
        """Take a stream off the books; False when it was off already."""
        if self._streams.pop(stream.id, None) is None:
            return False
        self._blocked.pop(stream.id, None)
        if self._draining and not self._streams:
            self._end(frames.NO_ERROR, "transport_closed", "was closed by this side")
        else:
            self._on_room()
        return True

    def _fail(self, stream: _Stream, error: Exception) -> None:
        if self._forget(stream) and not stream.answer.done():
            stream.answer.set_exception(error)

    def _answered(self, stream: _Stream) -> None:
        self._silent = 0
        if stream.unsent is not None:
            # It answered before it had read everything, so the rest need not be sent.
            self._send(frames.rst_stream(stream.id, frames.CANCEL))
        if self._forget(stream) and not stream.answer.done():
            body = stream.body[0] if len(stream.body) == 1 else b"".join(stream.body)
            stream.answer.set_result(
                Response(stream.status, fields.AnswerHeaders(stream.block), body[:ANSWER_BYTES_MAX])
            )

    def _unknown(self, code: str, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(f"the connection to {self._origin} {why}", error_code=code)

    # The end.

    def _leave(self) -> None:
        """Take no more requests here, and close once those in flight have ended."""
        self._draining = True
        if not self._streams:
            self._end(frames.NO_ERROR, "transport_closed", "was closed by this side")
        else:
            self._on_room()

    def _end(self, code: int, error_code: str, why: str) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._send(frames.goaway(code))
            self._flush()
            self._transport.close()
        self._lost(error_code, why)

    def _lost(self, error_code: str, why: str) -> None:
        """Settle everything; nothing more will come."""
        if self.gone:
            return
        self.gone = self._draining = True
        if self._ticking is not None:
            self._ticking.cancel()
        streams, self._streams = list(self._streams.values()), {}
        self._blocked.clear()
        for stream in streams:
            if not stream.answer.done():
                # A request whose end was never written cannot have been taken for a whole one.
                unsent = stream.unsent is not None
                stream.answer.set_exception(Untouched(error_code, why) if unsent else self._unknown(error_code, why))
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("the server closed the connection at once"))
        self._on_room()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # A server that negotiates nothing is one that needs no asking, as Apple's stand-ins often are.
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1":
            self.ready.set_exception(NotHttp2())
            self._transport.abort()
            return
        _keep_alive(transport.get_extra_info("socket"))
        greeting = {
            frames.HEADER_TABLE_SIZE: 0,
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            frames.MAX_HEADER_LIST_SIZE: fields.HEADER_LIST_BYTES_MAX,
        }
        more = CONNECTION_WINDOW_BYTES - 65_535
        self._send(frames.PREFACE + frames.settings_frame(greeting) + frames.window_update(0, more))
        self._tick()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("connection_lost", "was lost before the answer")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._on_room()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            for kind, flags, stream, payload in self._reader.feed(data):
                self._take(kind, flags, stream, payload)
        except ProtocolViolation as violation:
            self._end(violation.code, "protocol_error", f"was closed: the server sent {violation}")

    def _send(self, data: bytes) -> None:
        """Write with whatever else this turn of the loop writes, as one record of TLS."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _tick(self) -> None:
        """Look after what has waited too long. One timer a connection, however many requests it carries."""
        now = self._loop.time()
        limits = self._limits
        for stream in list(self._streams.values()):
            if now - stream.opened_at < limits.answer_timeout_s:
                break  # The others are younger.
            self._send(frames.rst_stream(stream.id, frames.CANCEL))
            self._fail(stream, self._unknown("answer_timeout", "brought no answer in time"))
        if self._pinged_at is not None:
            if now - self._pinged_at > PING_WAIT_S_MAX:
                self._end(frames.NO_ERROR, "connection_lost", "went silent")
        elif self._streams:
            if now - max(self._heard_at, self._used_at) >= limits.ping_s:
                self._pinged_at = now
                self._send(frames.frame(frames.PING, 0, 0, bytes(8)))
        elif now - self._used_at >= limits.idle_s:
            self._leave()
        if not self.gone:
            self._ticking = self._loop.call_later(min(1.0, limits.answer_timeout_s / 4), self._tick)

    # The server's frames.

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._unfinished is not None and kind != frames.CONTINUATION:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "a frame in the middle of a field block")
        if kind == frames.DATA:
            self._take_data(flags, stream_id, payload)
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self._take_fields(kind, flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._take_window(stream_id, frames.number(payload) & _GREATEST_WINDOW)
        elif kind == frames.RST_STREAM:
            self._take_reset(stream_id, frames.number(payload))
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._take_settings(payload)
        elif kind == frames.PING:
            if flags & frames.ACK:
                self._pinged_at = None
            else:
                self._send(frames.frame(frames.PING, frames.ACK, 0, payload[:8]))
        elif kind == frames.GOAWAY:
            self._take_goaway(payload)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "a push that was not allowed")

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > CONNECTION_WINDOW_BYTES // 2:
            self._send(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # We gave it up; what was on its way still comes.
        if not stream.status:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "an answer's body before its fields")
        part = frames.content(flags, payload)
        stream.body.append(part)
        stream.size += len(part)
        if flags & frames.END_STREAM:
            self._answered(stream)
        elif stream.size >= ANSWER_BYTES_MAX:
            self._send(frames.rst_stream(stream_id, frames.CANCEL))
            self._answered(stream)

    def _take_fields(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            block = frames.content(flags, payload)
            if flags & frames.PRIORITY:
                block = block[5:]
            ending = flags
        else:
            if self._unfinished is None or self._unfinished[0] != stream_id:
                raise ProtocolViolation(frames.PROTOCOL_ERROR, "a continuation of nothing")
            _, ending, before = self._unfinished
            block = before + payload
        if not flags & frames.END_HEADERS:
            if len(block) > HEADER_BLOCK_BYTES_MAX:
                raise ProtocolViolation(frames.PROTOCOL_ERROR, "an answer's fields without end")
            self._unfinished = (stream_id, ending, block)
            return
        self._unfinished = None
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.status:
            status = fields.status_of(block)
            if status < 200:
                return  # More is to come.
            stream.status, stream.block = status, block
        if ending & frames.END_STREAM:
            self._answered(stream)

    def _take_window(self, stream_id: int, more: int) -> None:
        if stream_id == 0:
            self._window += more
            if self._window > _GREATEST_WINDOW:
                raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "a window beyond all bounds")
            for blocked in list(self._blocked.values()):
                self._pump(blocked)
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.window += more
            if stream.unsent is not None:
                self._pump(stream)

    def _take_reset(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if code == frames.REFUSED_STREAM:
            self._fail(stream, Untouched("stream_refused", "refused the request unprocessed"))
        else:
            self._fail(stream, self._unknown("stream_reset", f"brought a reset of the request (error {code})"))

    def _take_settings(self, payload: bytes) -> None:
        for key, value in frames.settings(payload):
            if key == frames.MAX_CONCURRENT_STREAMS:
                self._streams_max = min(value, self._limits.streams_max)
            elif key == frames.INITIAL_WINDOW_SIZE:
                if value > _GREATEST_WINDOW:
                    raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "a window beyond all bounds")
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif key == frames.MAX_FRAME_SIZE:
                self._frame_bytes_max = max(value, frames.FRAME_BYTES_MAX)
        self._send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        for blocked in list(self._blocked.values()):
            self._pump(blocked)
        if not self.ready.done():
            self.ready.set_result(None)
        self._on_room()

    def _take_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise ProtocolViolation(frames.FRAME_SIZE_ERROR, "a GOAWAY of the wrong size")
        last, code = frames.number(payload[:4]) & STREAM_ID_LAST, frames.number(payload[4:8])
        self._draining = True
        reason = _REASON.search(payload, 8)
        why = "closed the connection before this request" + (f": {reason[1].decode()}" if reason else "")
        sendings_max = 20 if code == frames.NO_ERROR else 1
        for stream in [s for s in self._streams.values() if s.id > last]:
            self._fail(stream, Untouched("goaway", why, sendings_max=sendings_max))
        self._leave()


def _keep_alive(sock: socket.socket) -> None:
    """A server that vanished is noticed by unacknowledged bytes when busy and by probes when idle."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
