"""A bound port that can stop listening and come back: how an outage with refused connections is made."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from bellbuoy.errors import ConfigurationError
from bellbuoy.sandbox.http import Connection

_BACKLOG = 1_024


class Listener:
    """One TCP port, its server and its live connections.

    Args:
        host: the address to bind.
        port: 0 takes a free one.
        factory: makes the protocol of each connection, given this listener.
        tls: None for plain TCP.
    """

    def __init__(
        self,
        host: str,
        port: int,
        factory: Callable[[Listener], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._factory = factory
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None
        self._closed = False
        self.connections: set[Connection] = set()

    @property
    def port(self) -> int:
        """The bound port; before `start` the one asked for."""
        return self._port

    @property
    def refusing(self) -> bool:
        """True while connections are refused."""
        return self._server is None

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            ConfigurationError: the address is taken, not ours or not an address.
        """
        sock = await self._bind()
        self._port = sock.getsockname()[1]
        await self._listen(sock)

    async def refuse(self) -> None:
        """Stop listening and reset every connection; new ones are refused. The port stays ours."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        # Give the closed descriptor its turn before binding the port again without listening on it.
        await asyncio.sleep(0)
        self._placeholder = await self._bind()
        for connection in list(self.connections):
            connection.reset()

    async def resume(self) -> None:
        """Listen again after `refuse`, on the same port."""
        if self._server is not None or self._closed:
            return
        sock, self._placeholder = self._placeholder, None
        await self._listen(sock or await self._bind())

    async def aclose(self) -> None:
        """Stop listening and end every connection. Safe to call twice."""
        self._closed = True
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.close()
        # Closed transports tell their protocols so in a later turn; wait for a moment, not for ever.
        for _ in range(50):
            if not self.connections:
                return
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.reset()
        await asyncio.sleep(0)

    async def _bind(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigurationError(f"the sandbox cannot use the address {self._host}: {error}") from error
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            sock.close()
            raise ConfigurationError(
                f"the sandbox cannot bind {self._host}:{self._port}: {error}",
                hint="choose another port, or 0 for a free one",
            ) from error
        return sock

    async def _listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._factory(self), sock=sock, ssl=self._tls, backlog=_BACKLOG)
