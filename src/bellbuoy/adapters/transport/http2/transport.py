"""`Transport` over HTTP/2 connections of our own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import certifi

from bellbuoy.adapters.transport.http2 import fields
from bellbuoy.adapters.transport.http2.connection import Http2Connection, Limits, NotHttp2, Untouched
from bellbuoy.adapters.transport.port import Headers, Response, Transport
from bellbuoy.errors import ConfigurationError, ProviderError, Transient

WAITING_MAX = 10_000
"""Requests that may wait for a place on a connection."""


class Http2Transport:
    """Requests over a few long-lived connections.

    One connection carries up to `streams_max` requests at a time, or as many as the server allows, before another is
    opened, so that a quiet service keeps a single one. A request that the server has refused unprocessed, or that came
    after the last one it names in an orderly GOAWAY, is sent again on another connection; nothing else ever is.

    Args:
        other: carries what is not HTTP/2: plain http, and https to a server that negotiates HTTP/1.1. Closed with
            this one.
        ca_file: a PEM file of certificate authorities to trust besides the usual ones; None for none.
        connections_max: connections to one server at most.
        streams_max: requests in flight on one of them before the next is used; FCM and Apple allow 100 or more.
        connect_timeout_s: seconds for name, TCP, TLS and the server's settings together.
        answer_timeout_s: seconds from the beginning to the whole answer. A safety net, longer than any guard's
            timeout, so that no wait is unbounded.
        ping_s: seconds without a word from the server before it is pinged while something is in flight.
        idle_s: seconds after which an unused connection is closed.

    Raises:
        ConfigurationError: `ca_file` cannot be read or holds no certificate.
    """

    def __init__(
        self,
        *,
        other: Transport,
        ca_file: str | Path | None = None,
        connections_max: int = 8,
        streams_max: int = 90,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 30.0,
        ping_s: float = 30.0,
        idle_s: float = 150.0,
    ) -> None:
        self._tls = _context(ca_file)
        self._tls.set_alpn_protocols(["h2", "http/1.1"])
        self._other = other
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._limits = Limits(streams_max, answer_timeout_s, ping_s, idle_s)
        self._servers: dict[str, _Server] = {}
        self._closed = False
        # Encoding the fields that every message shares is done once. Per instance, since some are secrets.
        self._encode_request = lru_cache(64)(fields.encode_request)
        self._encode = lru_cache(64)(fields.encode)

    async def post(self, url: str, headers: Headers, body: bytes) -> Response:
        """See `Transport.post`."""
        return await self._exchange("POST", url, headers, body)

    async def get(self, url: str, headers: Headers) -> Response:
        """See `Transport.get`."""
        return await self._exchange("GET", url, headers, None)

    async def renew(self) -> None:
        """See `Transport.renew`."""
        servers, self._servers = self._servers, {}
        for server in servers.values():
            await server.aclose()
        await self._other.renew()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._closed = True
        for server in self._servers.values():
            await server.aclose()
        await self._other.aclose()

    async def _exchange(self, method: str, url: str, headers: Headers, body: bytes | None) -> Response:
        if self._closed:
            raise Transient("the connection is closed", error_code="transport_closed")
        at = url.find("/", 8)
        origin, path = (url[:at], url[at:]) if at > 0 else (url, "/")
        server = self._servers.get(origin)
        if server is None:
            server = self._servers[origin] = _Server(
                origin, self._tls, self._limits, self._connections_max, self._connect_timeout_s
            )
        if not server.speaks_http2:
            return await self._by_other(server, method, url, headers, body)
        request = self._encode_request(method, server.authority, path) + self._encode(tuple(headers))
        for sending in count(1):
            try:
                connection = server.roomy() or await server.place()
                return await connection.exchange(request, body)
            except NotHttp2:
                return await self._by_other(server, method, url, headers, body)
            except Untouched as error:
                failure = Transient(f"{origin} {error.why}", error_code=error.code)
                if sending >= error.sendings_max:
                    break
        # Raised out here, so that it has no context: no error of a library below gets to a log.
        raise failure

    async def _by_other(self, server: _Server, method: str, url: str, headers: Headers, body: bytes | None) -> Response:
        try:
            return await (self._other.get(url, headers) if body is None else self._other.post(url, headers, body))
        except ProviderError:
            server.ask_again()  # Whoever listens there next may speak HTTP/2.
            raise


class _Server:
    """The connections to one server, and who waits for a place on them."""

    def __init__(
        self,
        origin: str,
        tls: ssl.SSLContext,
        limits: Limits,
        connections_max: int,
        connect_timeout_s: float,
    ) -> None:
        parts = urlsplit(origin)
        self.origin = origin
        self.authority = parts.netloc
        self._https = parts.scheme == "https"
        self.speaks_http2 = self._https
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._tls = tls
        self._limits = limits
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._connections: list[Http2Connection] = []
        self._connecting: asyncio.Task[None] | None = None
        self._refused_until = 0.0  # While there are connections, no more is tried for a while after one failed.
        self._waiting: deque[asyncio.Future[None]] = deque()

    def roomy(self) -> Http2Connection | None:
        """The first connection with a place, so that the later ones fall idle and close."""
        for connection in self._connections:
            if connection.room() > 0:
                return connection
        return None

    async def place(self) -> Http2Connection:
        """Wait for a connection with a place, opening another where there may be one.

        Raises:
            Transient: none could be opened, or none had a place in time.
            NotHttp2: the server speaks something else.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise Transient(f"too many requests wait for {self.origin}", error_code="no_stream")
        deadline = asyncio.get_running_loop().time() + 2 * self._connect_timeout_s
        while True:
            self._open_another()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                break
            finally:
                with suppress(ValueError):  # It is there no more when somebody has answered it.
                    self._waiting.remove(waiter)
            connection = self.roomy()
            if connection is not None:
                return connection
        raise Transient(f"{self.origin} had no place for the request in time", error_code="no_stream")

    def ask_again(self) -> None:
        """Negotiate anew next time."""
        self.speaks_http2 = self._https

    async def aclose(self) -> None:
        """Close all connections."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for connection in list(self._connections):
            connection.close()
        self._refuse(Transient("the connection is closed", error_code="transport_closed"))

    def _open_another(self) -> None:
        if self._connecting is not None or len(self._connections) >= self._connections_max:
            return
        if not self._connections or asyncio.get_running_loop().time() >= self._refused_until:
            self._connecting = asyncio.create_task(self._connect(), name=f"connect {self.origin}")

    async def _connect(self) -> None:
        connection: Http2Connection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._greet()
                await connection.ready
            self._connections.append(connection)
        except NotHttp2 as error:
            self.speaks_http2 = False
            self._refuse(error)
        except Exception as error:
            self._refused_until = asyncio.get_running_loop().time() + self._connect_timeout_s
            if not self._connections:
                self._refuse(self._explain(error))
        finally:
            self._connecting = None
            if connection is not None and connection not in self._connections:
                connection.close()
        self._roused()

    async def _greet(self) -> Http2Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Http2Connection(self.origin, self._limits, self._roused),
            self._host,
            self._port,
            ssl=self._tls,
            server_hostname=self._host,
        )
        return connection

    def _roused(self) -> None:
        """Somebody may have room now, or is gone."""
        if any(connection.gone for connection in self._connections):
            self._connections = [c for c in self._connections if not c.gone]
        if not self._waiting:
            return
        room = sum(max(0, connection.room()) for connection in self._connections)
        if not self._connections and self._connecting is None:
            room = len(self._waiting)  # They have to open another one.
        while self._waiting and room > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1
        if self._waiting and self._connections:
            self._open_another()

    def _refuse(self, error: Exception) -> None:
        """Tell all that wait that there will be no place; each gets an error of its own to add to."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_copy(error))

    def _explain(self, error: Exception) -> Transient:
        code, why, hint = "connect_failed", "connection refused or reset", None
        if isinstance(error, TimeoutError):
            code, why = "connect_timeout", "it took too long"
        elif isinstance(error, ssl.SSLCertVerificationError):
            code, why = "tls_failed", "its certificate is not trusted"
            hint = "set tls.ca_file when it is signed by an authority of your own"
        elif isinstance(error, socket.gaierror):
            code, why = "dns_failed", "its name cannot be resolved"
        return Transient(f"cannot connect to {self.origin}: {why}", error_code=code, hint=hint)


def _copy(error: Exception) -> Exception:
    if isinstance(error, Transient):
        return Transient(str(error), error_code=error.error_code, hint=error.hint)
    return NotHttp2()


def _context(ca_file: str | Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError):
            raise ConfigurationError(
                f"tls.ca_file {str(ca_file)!r} cannot be read as PEM certificates",
                hint="set tls.ca_file to a file with one or more PEM certificates, or leave it out",
            ) from None
    return context
