"""What ends a request, and what that says about it, seen over real TLS and HTTP/2 on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from bellbuoy.adapters.transport import ANSWER_BYTES_MAX, Http2Transport, PyreqwestTransport, Response, Transport
from bellbuoy.errors import ConfigurationError, OutcomeUnknown, Permanent, ProviderError, Transient
from tests.unit.adapters.transport.fakes import Certificates, Http2Connection, Http2Server

JSON = (("content-type", "application/json"),)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def server(certificates: Certificates) -> AsyncIterator[Http2Server]:
    async with Http2Server().run(certificates) as running:
        yield running


class Make(Protocol):
    """Makes a transport of one kind that speaks HTTP/2 alone, unless `negotiate` is true."""

    def __call__(self, *, negotiate: bool = False, ca_file: Path | None = ..., **numbers: Any) -> Transport: ...


@pytest.fixture(params=["http2", "pyreqwest"])
async def make(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Make]:
    made: list[Transport] = []

    def build(*, negotiate: bool = False, ca_file: Path | None = certificates.ca_file, **numbers: Any) -> Transport:
        transport: Transport
        if request.param == "pyreqwest":
            transport = PyreqwestTransport(ca_file=ca_file, http2_only=not negotiate, **numbers)
        else:
            other = PyreqwestTransport(ca_file=ca_file, **numbers)
            transport = Http2Transport(ca_file=ca_file, other=other, **numbers)
        made.append(transport)
        return transport

    yield build
    for transport in made:
        await transport.aclose()


@pytest.fixture
def transport(make: Make) -> Transport:
    return make(answer_timeout_s=5.0)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # The server's side has no event to wait for.
            await asyncio.sleep(0.005)


async def test_the_request_arrives_and_the_answer_comes_back(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, stream: int) -> bool:
        connection.reply(stream, 418, b"short and stout", retry_after="7")
        return True

    server.behave = behave
    answer = await transport.post(server.url + "/a/b?c=d", (*JSON, ("apns-id", "x")), b'{"n":1}')
    assert (answer.status, answer.body) == (418, b"short and stout")
    assert answer.headers.get("retry-after") == "7"
    [connection] = server.connections
    [headers] = connection.headers.values()
    assert headers[":path"] == "/a/b?c=d"
    assert headers["content-type"] == "application/json"
    assert headers["apns-id"] == "x"
    assert "accept-encoding" not in headers
    assert list(connection.bodies.values()) == [b'{"n":1}']


async def test_one_connection_carries_many_requests(server: Http2Server, transport: Transport) -> None:
    answers = await asyncio.gather(*(transport.post(server.url + "/", JSON, b"{}") for _ in range(50)))
    assert {a.status for a in answers} == {200}
    assert len(server.connections) == 1


async def test_a_burst_over_the_stream_limit_opens_another_connection(server: Http2Server, make: Make) -> None:
    held: list[tuple[Http2Connection, int]] = []

    def behave(connection: Http2Connection, stream: int) -> bool:
        held.append((connection, stream))
        return True

    server.behave = behave
    transport = make(streams_max=4)
    sends = [asyncio.create_task(transport.post(server.url + "/", JSON, b"{}")) for _ in range(10)]
    await _until(lambda: len(held) == 10)
    assert Counter(len(c.ended) for c in server.connections) == {4: 2, 2: 1}
    for connection, stream in held:
        connection.reply(stream)
        connection.flush()
    assert {(await s).status for s in sends} == {200}


async def test_a_negotiated_connection_is_kept_to_http2(server: Http2Server, make: Make) -> None:
    transport = make(negotiate=True)
    for _ in range(5):
        assert (await transport.post(server.url + "/", JSON, b"{}")).status == 200
    # One driver opens another once it knows that it need not negotiate.
    assert len(server.connections) <= 2


async def test_http1_is_spoken_where_the_server_has_nothing_else(certificates: Certificates, make: Make) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    for context, scheme in ((certificates.server_context("http/1.1"), "https"), (None, "http")):
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            transport = make(negotiate=True)
            port = server.sockets[0].getsockname()[1]
            answer = await transport.get(f"{scheme}://127.0.0.1:{port}/", ())
            assert answer == Response(201, answer.headers, b"ok")


async def test_an_answer_is_read_up_to_its_limit(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, stream: int) -> bool:
        # As much as the flow-control window takes, of an answer that never ends.
        connection.h2.send_headers(stream, [(":status", "200")])
        while (room := connection.h2.local_flow_control_window(stream)) > 0:
            connection.h2.send_data(stream, b"x" * min(room, 16_000))
        connection.flush()
        return True

    server.behave = behave
    answer = await transport.post(server.url + "/", JSON, b"{}")
    assert answer.status == 200
    assert 0 < len(answer.body) <= ANSWER_BYTES_MAX


async def test_redirects_are_answers(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, stream: int) -> bool:
        connection.reply(stream, 307, location=server.url + "/elsewhere")
        return True

    server.behave = behave
    assert (await transport.post(server.url + "/", JSON, b"{}")).status == 307
    assert server.requests == 1


async def test_a_refused_connection_is_transient(transport: Transport) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Transient) as caught:
            await transport.post(f"https://127.0.0.1:{bound.getsockname()[1]}/3/device/abcdef", JSON, b"{}")
    assert caught.value.error_code == "connect_failed"


async def test_an_unknown_name_is_transient(transport: Transport) -> None:
    with pytest.raises(Transient) as caught:
        await transport.post("https://no-such-host.invalid/", JSON, b"{}")
    assert caught.value.error_code == "dns_failed"


async def test_an_untrusted_certificate_is_transient_and_names_the_setting(server: Http2Server, make: Make) -> None:
    transport = make(ca_file=None)
    with pytest.raises(Transient) as caught:
        await transport.post(server.url + "/", JSON, b"{}")
    assert caught.value.error_code == "tls_failed"
    assert "tls.ca_file" in (caught.value.hint or "")
    assert server.requests == 0


async def test_a_certificate_for_another_name_is_refused(certificates: Certificates, transport: Transport) -> None:
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, "127.0.0.2", 0, ssl=certificates.server_context("h2")
    )
    async with server:
        with pytest.raises(Transient) as caught:
            await transport.post(f"https://127.0.0.2:{server.sockets[0].getsockname()[1]}/", JSON, b"{}")
    assert caught.value.error_code == "tls_failed"


async def test_a_peer_that_never_shakes_hands_is_transient(make: Make) -> None:
    transport = make(connect_timeout_s=0.2)
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Transient) as caught:
            await transport.post(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", JSON, b"{}")
    assert caught.value.error_code == "connect_timeout"


async def test_a_reset_after_the_request_is_unknown(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, _stream: int) -> bool:
        connection.transport.abort()
        return True

    server.behave = behave
    with pytest.raises(OutcomeUnknown) as caught:
        await transport.post(server.url + "/", JSON, b"{}")
    assert caught.value.error_code == "connection_lost"
    assert server.requests == 1


async def test_no_answer_in_time_is_unknown(server: Http2Server, make: Make) -> None:
    server.behave = lambda _connection, _stream: True
    transport = make(answer_timeout_s=0.2)
    with pytest.raises(OutcomeUnknown) as caught:
        await transport.post(server.url + "/", JSON, b"{}")
    assert caught.value.error_code == "answer_timeout"


async def test_a_stream_that_is_always_refused_is_transient(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, stream: int) -> bool:
        connection.refuse(stream)
        return True

    server.behave = behave
    with pytest.raises(Transient) as caught:
        await transport.post(server.url + "/", JSON, b"{}")
    assert caught.value.error_code == "stream_refused"


@pytest.mark.parametrize("error", [0, 2, 11], ids=["NO_ERROR", "INTERNAL_ERROR", "ENHANCE_YOUR_CALM"])
async def test_a_goaway_loses_nothing_and_claims_nothing(server: Http2Server, transport: Transport, error: int) -> None:
    """Of ten requests in flight the first five may have been processed, the others were not touched."""
    first: list[bytes] = []

    def behave(connection: Http2Connection, stream: int) -> bool:
        if connection is not server.connections[0]:
            return False
        if len(connection.ended) == 10:
            first.extend(connection.bodies[s] for s in connection.ended[:5])
            connection.goaway(connection.ended[4], error)
            asyncio.get_running_loop().call_later(0.05, connection.transport.close)
        return True

    server.behave = behave
    bodies = [str(n).encode() for n in range(10)]
    results = await asyncio.gather(
        *(transport.post(server.url + "/", JSON, body) for body in bodies), return_exceptions=True
    )
    for body, result in zip(bodies, results, strict=True):
        if body in first:
            assert isinstance(result, OutcomeUnknown), result
        elif error == 0:
            # Untouched streams of an orderly goodbye are sent again by the driver itself.
            assert isinstance(result, Response), result
        else:
            assert isinstance(result, Transient), result
            assert result.error_code == "goaway"
    assert (await transport.post(server.url + "/", JSON, b"next")).status == 200


async def test_a_cancelled_call_returns_at_once_and_others_go_on(server: Http2Server, transport: Transport) -> None:
    server.behave = lambda connection, stream: connection.bodies[stream] == b"slow"
    slow = asyncio.create_task(transport.post(server.url + "/", JSON, b"slow"))
    await _until(lambda: server.requests == 1)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert (await transport.post(server.url + "/", JSON, b"quick")).status == 200
    assert len(server.connections) == 1


async def test_a_connection_that_says_nothing_is_left(server: Http2Server, transport: Transport) -> None:
    server.behave = lambda connection, _stream: connection is server.connections[0]
    for n in range(1, 4):
        call = asyncio.create_task(transport.post(server.url + "/", JSON, b"{}"))
        await _until(lambda wanted=n: server.requests == wanted)  # type: ignore[misc]
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert (await transport.post(server.url + "/", JSON, b"{}")).status == 200
    assert len(server.connections) == 2


async def test_errors_never_hold_the_path_of_the_url(server: Http2Server, transport: Transport) -> None:
    def behave(connection: Http2Connection, _stream: int) -> bool:
        connection.transport.abort()
        return True

    server.behave = behave
    secret = "5ec3e7" * 8
    for url in (f"{server.url}/3/device/{secret}", f"https://no-such-host.invalid/3/device/{secret}"):
        with pytest.raises(ProviderError) as caught:
            await transport.post(url, JSON, b"{}")
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in repr(error) + str(error)
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize(("name", "value"), [("x", "a\r\nb: c"), ("x y", "z")])
async def test_what_no_header_can_carry_is_permanent(transport: Transport, name: str, value: str) -> None:
    with pytest.raises(Permanent):
        await transport.post("https://127.0.0.1:1/", ((name, value),), b"")


async def test_the_environment_names_no_proxy(server: Http2Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    transport = make()
    assert (await transport.post(server.url + "/", JSON, b"{}")).status == 200


async def test_closing_ends_what_is_in_flight_and_may_be_repeated(server: Http2Server, transport: Transport) -> None:
    server.behave = lambda _connection, _stream: True
    call = asyncio.create_task(transport.post(server.url + "/", JSON, b"{}"))
    await _until(lambda: server.requests == 1)
    await transport.aclose()
    with pytest.raises(OutcomeUnknown):
        await call
    with pytest.raises(Transient):
        await transport.post(server.url + "/", JSON, b"{}")
    await transport.aclose()


@pytest.mark.parametrize("content", [None, b"", b"junk"])
async def test_a_useless_ca_file_is_a_configuration_error(tmp_path: Path, make: Make, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        make(ca_file=file)
    assert "tls.ca_file" in (caught.value.hint or "")
