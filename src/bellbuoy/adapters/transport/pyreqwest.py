"""`Transport` on pyreqwest: reqwest, hyper and rustls below, one event loop above."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import ClientClosedError, PyreqwestError, RequestError
from pyreqwest.request import RequestBuilder

from bellbuoy.adapters.transport.port import ANSWER_BYTES_MAX, Headers, Response
from bellbuoy.errors import ConfigurationError, OutcomeUnknown, Permanent, ProviderError, Transient

_SILENT_MAX = 3
"""Requests given up on one after another, with no answer between, before a connection counts as dead."""

# How a client talks: plain HTTP/1.1, HTTP/2 alone, or what TLS negotiates.
_HTTP1, _HTTP2, _EITHER = "http1", "http2", "either"


class PyreqwestTransport:
    """Requests over a few long-lived connections.

    HTTP/2 requests fill one connection up to `streams_max` before another is opened, so that a quiet service keeps
    a single one and a burst is not held up by the peer's limit of streams. A call that is given up keeps its place
    until `answer_timeout_s` has passed, because the driver goes on waiting for the answer below us.

    Args:
        ca_file: a PEM file of certificate authorities to trust besides the built-in ones; None for none.
        http2_only: over https, speak HTTP/2 without asking (APNs has nothing else); False negotiates, and then
            stays with HTTP/2 where it was agreed. Plain http is always HTTP/1.1.
        connections_max: HTTP/2 connections at most.
        streams_max: requests in flight on one of them before the next is used; FCM and Apple allow 100 or more.
        connect_timeout_s: seconds for name, TCP and TLS together.
        answer_timeout_s: seconds from the beginning to the whole answer. A safety net, longer than any guard's
            timeout, so that no wait is unbounded.
        ping_s: seconds between HTTP/2 pings while something is in flight.
        idle_s: seconds after which an unused connection is closed.

    Raises:
        ConfigurationError: `ca_file` cannot be read or holds no certificate.
    """

    def __init__(
        self,
        *,
        ca_file: str | Path | None = None,
        http2_only: bool = False,
        connections_max: int = 8,
        streams_max: int = 90,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 30.0,
        ping_s: float = 30.0,
        idle_s: float = 150.0,
    ) -> None:
        self._authorities = _read_authorities(ca_file)
        self._http2_only = http2_only
        self._streams_max = streams_max
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._ping_s = ping_s
        self._idle_s = idle_s
        self._speaks_http2: set[str] = set()
        self._lanes = [_Lane() for _ in range(connections_max)]
        self._closed = False

    async def post(self, url: str, headers: Headers, body: bytes) -> Response:
        """See `Transport.post`."""
        return await self._exchange("POST", url, headers, body)

    async def get(self, url: str, headers: Headers) -> Response:
        """See `Transport.get`."""
        return await self._exchange("GET", url, headers, None)

    async def renew(self) -> None:
        """See `Transport.renew`."""
        self._speaks_http2.clear()
        await self._let_go()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._closed = True
        await self._let_go()

    async def _let_go(self) -> None:
        clients = [client for lane in self._lanes for client in lane.clients.values()]
        for lane in self._lanes:
            lane.clients = {}
        await asyncio.gather(*(client.close() for client in clients))

    async def _exchange(self, method: str, url: str, headers: Headers, body: bytes | None) -> Response:
        if self._closed:
            raise Transient("the connection is closed", error_code="transport_closed")
        lane = self._lanes[0]
        if lane.taken >= self._streams_max:
            lane = self._roomiest()
        origin = url[: url.find("/", 8)]
        kind = self._kind(origin)
        client = lane.clients.get(kind)
        if client is None:
            client = lane.clients[kind] = self._build(kind)
        lane.taken += 1
        given_up = False
        try:
            request = _request(client, method, url, headers, body).build_streamed()
            async with request as answer:
                data = await answer.body_reader.read(ANSWER_BYTES_MAX)
                if kind is _EITHER and answer.version == "HTTP/2.0":
                    self._speaks_http2.add(origin)
                lane.silent = 0
                return Response(answer.status, answer.headers, bytes(data) if data else b"")
        except asyncio.CancelledError:
            given_up = True
            self._given_up(lane)
            raise
        except (PyreqwestError, ValueError) as error:
            self._speaks_http2.discard(origin)
            failure = _explain(error, origin)
        finally:
            if not given_up:
                lane.taken -= 1
        # Raised out here, so that it has no context: the driver's error names the whole URL, a token in its path.
        raise failure

    def _kind(self, origin: str) -> str:
        if not origin.startswith("https:"):
            return _HTTP1
        # An agreed origin gets a client that knows it speaks HTTP/2: after a lost connection a hundred requests then
        # wait for one handshake, where negotiating each for itself would make a hundred.
        return _HTTP2 if self._http2_only or origin in self._speaks_http2 else _EITHER

    def _roomiest(self) -> _Lane:
        for lane in self._lanes:
            if lane.taken < self._streams_max:
                return lane
        return min(self._lanes, key=lambda lane: lane.taken)

    def _given_up(self, lane: _Lane) -> None:
        """Keep a cancelled call's place for as long as the driver may, and leave a connection that says nothing."""
        asyncio.get_running_loop().call_later(self._answer_timeout_s, lane.give_back)
        lane.silent += 1
        if lane.silent >= _SILENT_MAX and lane in self._lanes:
            # What is still in flight there may yet be answered; only new requests go to a new connection, and the
            # old one ends with the last of its own.
            self._lanes[self._lanes.index(lane)] = _Lane()

    def _build(self, kind: str) -> Client:
        builder = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .user_agent("bellbuoy")
            .min_tls_version("TLSv1.2")
            .connect_timeout(timedelta(seconds=self._connect_timeout_s))
            .timeout(timedelta(seconds=self._answer_timeout_s))
            .pool_idle_timeout(timedelta(seconds=self._idle_s))
            .pool_max_idle_per_host(32)
            .tcp_nodelay(True)
            # A peer that vanished is noticed by unacknowledged bytes when busy and by keep-alive probes when idle.
            .tcp_user_timeout(timedelta(seconds=20))
            .tcp_keepalive(timedelta(seconds=60))
            .https_only(kind != _HTTP1)
        )
        for authority in self._authorities:
            builder = builder.add_root_certificate_pem(authority)
        if kind == _HTTP1:
            return builder.http1_only().build()
        builder = builder.http2_prior_knowledge() if kind == _HTTP2 else builder.http2(True)
        ping = timedelta(seconds=self._ping_s)
        return builder.http2_keep_alive_interval(ping).http2_keep_alive_timeout(timedelta(seconds=10)).build()


class _Lane:
    """A place for one HTTP/2 connection: how many requests are in it, and how many went unanswered in a row."""

    __slots__ = ("clients", "silent", "taken")

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.taken = 0
        self.silent = 0

    def give_back(self) -> None:
        self.taken -= 1


def _request(client: Client, method: str, url: str, headers: Headers, body: bytes | None) -> RequestBuilder:
    request = client.request(method, url).headers(headers).streamed_read_buffer_limit(ANSWER_BYTES_MAX)
    return request if body is None else request.body_bytes(body)


def _read_authorities(ca_file: str | Path | None) -> list[bytes]:
    if ca_file is None:
        return []
    try:
        found = x509.load_pem_x509_certificates(Path(ca_file).read_bytes())
    except (OSError, ValueError):
        raise ConfigurationError(
            f"tls.ca_file {str(ca_file)!r} cannot be read as PEM certificates",
            hint="set tls.ca_file to a file with one or more PEM certificates, or leave it out",
        ) from None
    return [certificate.public_bytes(Encoding.PEM) for certificate in found]


def _explain(error: Exception, origin: str) -> ProviderError:
    """Say what a driver's error means for the request. Its classes do not: a connection lost after the request was
    written is a `ConnectError` too, and a late answer a `ConnectTimeoutError`. The chain of causes tells them apart.
    """
    if isinstance(error, ClientClosedError):
        return OutcomeUnknown(f"the connection to {origin} was closed by this side", error_code="transport_closed")
    if not isinstance(error, RequestError):
        return Permanent("the message cannot be written as an HTTP request", error_code="unsendable")
    details = error.details.get("causes")
    causes = " / ".join(cause["message"] for cause in details[1:]) if details else ""
    if "client error (Connect)" in causes:
        code = next((code for sign, code in _CONNECT_SIGNS if sign in causes), "connect_failed")
        why, hint = _CONNECT[code]
        return Transient(f"cannot connect to {origin}: {why}", error_code=code, hint=hint)
    for sign, kind, code, why in _LATER:
        if sign in causes:
            return kind(f"{origin} {why}", error_code=code)
    return OutcomeUnknown(f"the connection to {origin} was lost before the answer", error_code="connection_lost")


_CONNECT: dict[str, tuple[str, str | None]] = {
    "connect_timeout": ("it took too long", None),
    "tls_failed": ("its certificate is not trusted", "set tls.ca_file when it is signed by an authority of your own"),
    "dns_failed": ("its name cannot be resolved", None),
    "connect_failed": ("connection refused or reset", None),
}

_CONNECT_SIGNS = (("timed out", "connect_timeout"), ("certificate", "tls_failed"), ("dns error", "dns_failed"))

_LATER: tuple[tuple[str, type[Transient | OutcomeUnknown], str, str], ...] = (
    ("refused stream before processing", Transient, "stream_refused", "refused the request unprocessed"),
    # The driver gives a GOAWAY's own error only to streams above its last stream id, and those are untouched. The ones
    # at or below it wait for their answers, and if the connection ends first they get the end of the connection.
    ("connection error received", Transient, "goaway", "closed the connection before this request"),
    ("timed out", OutcomeUnknown, "answer_timeout", "did not answer in time"),
)
