"""`GET /v1/events`: what happens in this process, as it happens, as server-sent events.

They are the events of the log, which hold no address, token, key or text. The health comes first and again whenever it
changes, so a reader that was too slow and missed something is up to date all the same.

Source of the format: the HTML standard, section 9.2, Server-sent events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, HttpError, Reply, Send, encode
from bellbuoy.service.api.health import health
from bellbuoy.service.times import stamp
from bellbuoy.service.watchers import LAST

TICK_S = 1.0
"""Seconds between two looks at the health and at whether the key still holds."""

ALIVE_EVERY = 15
"""Ticks without an event after which a comment shows that the stream is alive."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Stream(Reply):
    """An answer without an end; its body comes from `chunks` until they end or the client goes away."""

    __slots__ = ("_call", "_chunks")

    def __init__(self, call: Call, chunks: AsyncGenerator[bytes, None]) -> None:
        super().__init__(200, b"", b"text/event-stream", {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.headers = [(name, value) for name, value in self.headers if name != b"content-length"]
        self._call = call
        self._chunks = chunks

    async def send(self, send: Send) -> None:
        """Write it out, piece by piece."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(self._call.left())
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            writing.cancel()
            leaving.cancel()
            await asyncio.wait((writing, leaving))
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def events(context: Context, call: Call) -> Reply:
    """`GET /v1/events`."""
    call.query()
    chunks = _told(context, call)
    first = await anext(chunks)  # What it refuses is still an answer of its own.
    return Stream(call, _with(first, chunks))


async def _with(first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(chunks) as rest:
        yield first
        async for chunk in rest:
            yield chunk


async def _told(context: Context, call: Call) -> AsyncGenerator[bytes, None]:
    """The text of a stream: the health, then every event, and the health again whenever it has changed."""
    with context.watchers.watch() as watcher:
        shown, quiet = b"", 0
        while True:
            now = encode(_lasting(await health(context)))
            if now != shown:
                shown, quiet = now, 0
                yield b"event: health\ndata: " + now + b"\n\n"
            elif quiet >= ALIVE_EVERY:
                quiet = 0
                yield b": alive\n\n"
            missed, found = await watcher.take(TICK_S)
            quiet += 1
            try:
                context.authenticate(call)
            except HttpError:
                return  # The key was revoked.
            text = _text("missed", {"count": missed}) if missed else b""
            text += b"".join(_text(name, {"at": stamp(at), **fields}, number) for number, at, name, fields in found)
            if text:
                quiet = 0
                yield text
            if any(name == LAST for _, _, name, _ in found):
                return


def _text(name: str, data: Mapping[str, object], number: int | None = None) -> bytes:
    """An event; JSON has no line break outside strings, and in them it is escaped."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {name}\ndata: ".encode() + _encode(data) + b"\n\n"


def _lasting(document: dict[str, Any]) -> dict[str, Any]:
    """The health without latencies, which change with every probe."""
    dependencies = {
        name: {key: value for key, value in one.items() if key != "latency_ms"}
        for name, one in document["dependencies"].items()
    }
    return document | {"dependencies": dependencies}
