"""Connections whose request never comes are closed; judged on the loop's own time, without waiting for it."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from bellbuoy.service.api.protocol import HEAD_BYTES_MAX, REQUEST_S_MAX, BoundedProtocol


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connected() -> tuple[BoundedProtocol, Pipe]:
    config = Config(app, lifespan="off", ws="none", log_config=None, http=BoundedProtocol)
    config.load()
    protocol = BoundedProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    pipe = Pipe()
    protocol.connection_made(pipe)
    return protocol, pipe


def later(protocol: BoundedProtocol) -> bool:
    return protocol.overdue(protocol.loop.time() + REQUEST_S_MAX + 1)


async def test_silence_half_a_head_and_half_a_body_are_overdue() -> None:
    for begun in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"):
        protocol, _ = connected()
        if begun:
            protocol.data_received(begun)
        assert not protocol.overdue(protocol.loop.time())
        assert later(protocol)
        protocol.connection_lost(None)


async def test_a_whole_request_is_not_and_its_answer_is_one_write() -> None:
    protocol, pipe = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not later(protocol)
    for _ in range(5):
        await asyncio.sleep(0)
    (answer,) = pipe.written
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")
    protocol.data_received(b"GET / HT")
    assert later(protocol)
    protocol.connection_lost(None)


async def test_a_head_over_its_limit_is_refused() -> None:
    protocol, pipe = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\nX-Long: ")
    for _ in range(HEAD_BYTES_MAX // 16_384 + 1):
        protocol.data_received(b"a" * 16_384)
    assert pipe.closed
    assert b"".join(pipe.written).startswith(b"HTTP/1.1 400")
    protocol.connection_lost(None)
