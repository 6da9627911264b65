"""A transport that answers from a script, and an HTTP/2 server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bellbuoy.adapters.transport import Headers, Response

Reply = Response | Exception | asyncio.Future[Response]


class FakeTransport:
    """Gives the replies it was told to, in order, then the last one for ever; and remembers what was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.replies: deque[Reply] = deque(replies)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.closed = self.renewed = 0

    async def post(self, url: str, headers: Headers, body: bytes) -> Response:
        self.requests.append((url, dict(headers), body))
        await asyncio.sleep(0)
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, asyncio.Future):
            return await asyncio.shield(reply)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def get(self, url: str, headers: Headers) -> Response:
        return await self.post(url, headers, b"")

    async def renew(self) -> None:
        self.renewed += 1

    async def aclose(self) -> None:
        self.closed += 1


def answer(status: int, body: bytes = b"", **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


class Certificates:
    """An authority of our own and a server certificate for localhost and 127.0.0.1, as PEM files."""

    def __init__(self, folder: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        leaf_key = ec.generate_private_key(ec.SECP256R1())

        def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.Certificate:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            return (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(authority)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1))
                .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName(names), critical=False)
                .sign(authority_key, hashes.SHA256())
            )

        pem = serialization.Encoding.PEM
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(build(authority, authority_key, ca=True).public_bytes(pem))
        leaf = build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), leaf_key, ca=False)
        self.cert_file = folder / "cert.pem"
        self.cert_file.write_bytes(leaf.public_bytes(pem))
        self.key_file = folder / "key.pem"
        self.key_file.write_bytes(
            leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def server_context(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        context.set_alpn_protocols(list(alpn))
        return context


class Http2Server:
    """Answers 200 `{}` to everything, unless `behave` does something else with the stream.

    `behave` is given the connection and the stream's id once the request has ended, and says True when it has dealt
    with it.
    """

    def __init__(self) -> None:
        self.behave: Callable[[Http2Connection, int], bool] = lambda _connection, _stream: False
        self.connections: list[Http2Connection] = []
        self.url = ""

    @property
    def requests(self) -> int:
        return sum(len(c.ended) for c in self.connections)

    @contextlib.asynccontextmanager
    async def run(self, certificates: Certificates) -> AsyncIterator[Http2Server]:
        server = await asyncio.get_running_loop().create_server(
            lambda: Http2Connection(self), "127.0.0.1", 0, ssl=certificates.server_context("h2")
        )
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in self.connections:
                connection.transport.abort()
            await server.wait_closed()


class Http2Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: Http2Server) -> None:
        self.server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.ended: list[int] = []
        self.bodies: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.reset: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.append(self)
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers[event.stream_id] = {
                    k.decode() if isinstance(k, bytes) else k: v.decode() if isinstance(v, bytes) else v
                    for k, v in event.headers
                }
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.reset.append(event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.append(event.stream_id)
                if not self.server.behave(self, event.stream_id):
                    self.reply(event.stream_id)
            if self.transport.is_closing():
                return
        self.flush()

    def reply(self, stream: int, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        self.h2.send_headers(
            stream, [(":status", str(status)), *((k.replace("_", "-"), v) for k, v in headers.items())]
        )
        for at in range(0, len(body), 16_000):
            self.h2.send_data(stream, body[at : at + 16_000])
        self.h2.end_stream(stream)

    def refuse(self, stream: int) -> None:
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)

    def goaway(self, last_stream: int, error: int = 0) -> None:
        self.h2.close_connection(error_code=error, last_stream_id=last_stream)
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())
