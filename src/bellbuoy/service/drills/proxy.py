"""A TCP proxy that cuts, delays and freezes: what a network does to a connection, without the server's help."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK = 65_536


class Proxy:
    """Stands on a port of its own on loopback, in a thread of its own, before a server.

    Args:
        port: the server's.
        host: the server's.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._delay_s = 0.0
        self._refusing = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Break every connection and refuse new ones until `mend`."""
        self._do(self._cut())

    def delay(self, seconds: float) -> None:
        """Hold back whatever the server says, by so many seconds, until `mend`."""
        self._do(self._set(delay_s=seconds))

    def mend(self) -> None:
        """Be as good as no proxy."""
        self._do(self._set(delay_s=0.0))

    def close(self) -> None:
        self._do(self._cut())
        self._server.close()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _set(self, *, delay_s: float) -> None:
        self._delay_s = delay_s
        self._refusing = False

    async def _cut(self) -> None:
        self._refusing = True
        for writer in self._connections:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, to_there = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_there}
        self._connections |= both
        try:
            await asyncio.gather(self._pass(reader, to_there, late=False), self._pass(there, writer, late=True))
        finally:
            self._connections -= both
            for one in both:
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        """Hand on what comes, each piece so much later than it came; the pieces between are not held up by it."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def hand_on() -> None:
            while True:
                at, piece = await pieces.get()
                await asyncio.sleep(max(0.0, at - self._loop.time()))
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        handing = asyncio.create_task(hand_on())
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK):
                pieces.put_nowait((self._loop.time() + (self._delay_s if late else 0.0), piece))
        pieces.put_nowait((0.0, b""))
        with contextlib.suppress(OSError):
            await handing
