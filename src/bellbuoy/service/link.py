"""What a supervisor and the processes it keeps tell each other: lines of JSON over a socket that both hold.

The socket is also how either learns of the other's end: a process whose supervisor is gone stops by itself, so that
nothing is left running that nobody watches.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

LINE_BYTES_MAX = 1024 * 1024
"""The longest line; the settings, which are one line, are a few thousand."""


class Link:
    """One end. Build it with `open_link`.

    Concurrency: any number of tasks may `tell`; one reads `heard`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def tell(self, **message: Any) -> None:
        """Say something; when the other end is gone nobody hears it, which `heard` finds out."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def heard(self) -> AsyncIterator[dict[str, Any]]:
        """What the other end says, until it is gone."""
        while True:
            try:
                line = await self._reader.readline()
            except (ConnectionError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    def close(self) -> None:
        """Close this end. Safe to call twice."""
        self._writer.close()


async def open_link(end: socket.socket) -> Link:
    """Make a link of one end of a socket pair, which it owns from now on."""
    end.setblocking(False)
    return Link(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES_MAX))
