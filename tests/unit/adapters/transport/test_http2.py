"""The HTTP/2 client against frames as no well-behaved server sends them, and what flow control holds back."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.adapters.transport import Http2Transport, PyreqwestTransport, Response
from bellbuoy.adapters.transport.http2 import fields, frames
from bellbuoy.errors import OutcomeUnknown, Transient
from tests.unit.adapters.transport.fakes import Certificates

OK = b"\x88"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


class RawServer:
    """Greets with given settings, then plays a script of bytes for each HEADERS frame it gets; notes all it gets."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self.settings: dict[int, int] = {}
        self.scripts: list[list[bytes]] = []
        self.got: list[frames.Frame] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.heard = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._certificates.server_context("h2")
        )
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/x"
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        writer.write(frames.settings_frame(self.settings))
        assert await reader.readexactly(len(frames.PREFACE)) == frames.PREFACE
        cutter = frames.FrameReader()
        while data := await reader.read(65_536):
            for frame in cutter.feed(data):
                self.got.append(frame)
                if frame[0] == frames.HEADERS and self.scripts:
                    for part in self.scripts.pop(0):
                        writer.write(part)
            self.heard.set()

    async def until(self, count: int, kind: int) -> list[frames.Frame]:
        """The frames of a kind once there are so many."""
        async with asyncio.timeout(5):
            while len(found := [f for f in self.got if f[0] == kind]) < count:
                self.heard.clear()
                await self.heard.wait()
        return found


@pytest.fixture
async def server(certificates: Certificates) -> AsyncIterator[RawServer]:
    async with RawServer(certificates) as running:
        yield running


@pytest.fixture
async def transport(certificates: Certificates) -> AsyncIterator[Http2Transport]:
    made = Http2Transport(other=PyreqwestTransport(), ca_file=certificates.ca_file, answer_timeout_s=5.0)
    yield made
    await made.aclose()


def answer(stream: int = 1, body: bytes = b"{}") -> bytes:
    return frames.headers_frames(stream, OK, end_stream=False) + frames.frame(
        frames.DATA, frames.END_STREAM, stream, body
    )


async def test_the_last_settings_hold_from_the_first_request(server: RawServer, transport: Http2Transport) -> None:
    server.settings = {frames.INITIAL_WINDOW_SIZE: 10, frames.MAX_CONCURRENT_STREAMS: 1}
    call = asyncio.create_task(transport.post(server.url, (), b"0123456789abcdef"))
    [first] = await server.until(1, frames.DATA)
    assert first == (frames.DATA, 0, 1, b"0123456789")
    server.writers[0].write(frames.window_update(1, 3))
    _, second = await server.until(2, frames.DATA)
    assert second == (frames.DATA, 0, 1, b"abc")
    server.writers[0].write(frames.settings_frame({frames.INITIAL_WINDOW_SIZE: 100}))
    *_, third = await server.until(3, frames.DATA)
    assert third == (frames.DATA, frames.END_STREAM, 1, b"def")
    server.writers[0].write(answer())
    assert (await call).status == 200


async def test_the_connection_s_window_is_shared_and_refilled(server: RawServer, transport: Http2Transport) -> None:
    server.settings = {frames.INITIAL_WINDOW_SIZE: 1_000_000}
    call = asyncio.create_task(transport.post(server.url, (), bytes(70_000)))
    await server.until(4, frames.DATA)
    assert sum(len(f[3]) for f in server.got if f[0] == frames.DATA) == 65_535
    server.writers[0].write(frames.window_update(0, 10_000))
    last = (await server.until(5, frames.DATA))[-1]
    assert last[1] == frames.END_STREAM
    server.writers[0].write(answer())
    assert (await call).status == 200


async def test_a_request_whose_end_was_never_written_was_not_processed(
    server: RawServer, transport: Http2Transport
) -> None:
    server.settings = {frames.INITIAL_WINDOW_SIZE: 1}
    call = asyncio.create_task(transport.post(server.url, (), b"never whole"))
    for sending in range(1, 4):
        await server.until(sending, frames.DATA)
        server.writers[-1].transport.abort()
    with pytest.raises(Transient) as caught:
        await call
    assert caught.value.error_code == "connection_lost"
    assert server.connections == 3


async def test_a_burst_waits_for_as_many_places_as_the_server_gives(
    server: RawServer, certificates: Certificates
) -> None:
    server.settings = {frames.MAX_CONCURRENT_STREAMS: 1}
    server.scripts = [[answer(1 + 2 * n)] for n in range(20)]
    transport = Http2Transport(other=PyreqwestTransport(), ca_file=certificates.ca_file, connections_max=1)
    answers = await asyncio.gather(*(transport.post(server.url, (), b"{}") for _ in range(20)))
    assert {a.status for a in answers} == {200}
    assert server.connections == 1
    await transport.aclose()


async def test_giving_up_tells_the_server(server: RawServer, transport: Http2Transport) -> None:
    call = asyncio.create_task(transport.post(server.url, (), b"{}"))
    await server.until(1, frames.DATA)
    call.cancel()
    [reset] = await server.until(1, frames.RST_STREAM)
    assert reset[2:] == (1, struct.pack(">I", frames.CANCEL))


async def test_a_ping_is_answered(server: RawServer, transport: Http2Transport) -> None:
    server.scripts = [[frames.frame(frames.PING, 0, 0, b"12345678"), answer()]]
    assert (await transport.post(server.url, (), b"{}")).status == 200
    [pong] = await server.until(1, frames.PING)
    assert pong == (frames.PING, frames.ACK, 0, b"12345678")


async def test_a_server_that_answers_no_ping_is_left(server: RawServer, certificates: Certificates) -> None:
    loop = asyncio.get_running_loop()
    transport = Http2Transport(
        other=PyreqwestTransport(), ca_file=certificates.ca_file, answer_timeout_s=0.04, ping_s=0.0
    )
    with pytest.raises(OutcomeUnknown):  # Its first tick pings; nothing answers that either.
        await transport.post(server.url, (), b"{}")
    await server.until(1, frames.PING)
    [connection] = transport._servers[server.url[:-2]]._connections
    connection._pinged_at = loop.time() - 11.0
    connection._tick()
    assert connection.gone
    await transport.aclose()


async def test_informational_answers_padding_priority_and_trailers_are_read_over(
    server: RawServer, transport: Http2Transport
) -> None:
    early = frames.headers_frames(1, b"\x08\x03103", end_stream=False)
    padded = frames.frame(
        frames.HEADERS, frames.END_HEADERS | frames.PADDED | frames.PRIORITY, 1, b"\x02" + bytes(5) + OK + bytes(2)
    )
    data = frames.frame(frames.DATA, frames.PADDED, 1, b"\x03body" + bytes(3))
    trailers = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, b"\x00\x01a\x01b")
    server.scripts = [[early, padded, data, trailers]]
    found = await transport.post(server.url, (), b"{}")
    assert (found.status, found.body) == (200, b"body")


async def test_fields_in_many_frames_are_put_together(server: RawServer, transport: Http2Transport) -> None:
    block = OK + fields.encode((("retry-after", "7"),))
    head = frames.frame(frames.HEADERS, frames.END_STREAM, 1, block[:3])
    rest = frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[3:])
    server.scripts = [[head, rest]]
    found = await transport.post(server.url, (), b"{}")
    assert found == Response(200, found.headers, b"")
    assert dict(found.headers) == {"retry-after": "7"}


@pytest.mark.parametrize(
    ("violation", "code"),
    [
        (frames.frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 0, 1, OK) + frames.frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, OK), frames.PROTOCOL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
        (frames.frame(frames.SETTINGS, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
        (frames.settings_frame({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
        (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
        (frames.frame(frames.GOAWAY, 0, 0, b"abc"), frames.FRAME_SIZE_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", frames.FRAME_SIZE_ERROR),
        (frames.headers_frames(1, b"\x00\x01a\x01b", end_stream=True), frames.PROTOCOL_ERROR),
        (frames.headers_frames(1, b"\xbe", end_stream=True), frames.COMPRESSION_ERROR),
        (frames.headers_frames(1, b"\x00", end_stream=True), frames.COMPRESSION_ERROR),
        (frames.frame(frames.DATA, frames.PADDED, 3, b"\x09"), None),
        (
            frames.headers_frames(1, OK, end_stream=False) + frames.frame(frames.DATA, frames.PADDED, 1, b"\x09"),
            frames.PROTOCOL_ERROR,
        ),
        (
            frames.frame(frames.HEADERS, 0, 1, bytes(16_000))
            + 5 * frames.frame(frames.CONTINUATION, 0, 1, bytes(16_000)),
            frames.PROTOCOL_ERROR,
        ),
    ],
)
async def test_a_violation_ends_the_connection_and_leaves_the_request_unknown(
    server: RawServer, transport: Http2Transport, violation: bytes, code: int | None
) -> None:
    server.scripts = [[violation, answer()] if code is None else [violation]]
    if code is None:  # Of a stream that is not there any more, nothing is of interest.
        assert (await transport.post(server.url, (), b"{}")).status == 200
        return
    with pytest.raises(OutcomeUnknown) as caught:
        await transport.post(server.url, (), b"{}")
    assert caught.value.error_code == "protocol_error"
    [goodbye] = await server.until(1, frames.GOAWAY)
    assert goodbye[3] == struct.pack(">II", 0, code)
    server.scripts = [[answer()]]
    assert (await transport.post(server.url, (), b"{}")).status == 200


async def test_the_reason_of_a_goaway_is_told(server: RawServer, transport: Http2Transport) -> None:
    said = struct.pack(">II", 0, 11) + b'{"reason":"TooManyRequests"}'
    server.scripts = [[frames.frame(frames.GOAWAY, 0, 0, said)]]
    with pytest.raises(Transient, match="TooManyRequests"):
        await transport.post(server.url, (), b"{}")


async def test_an_answer_that_comes_before_the_request_s_end_counts(
    server: RawServer, transport: Http2Transport
) -> None:
    server.settings = {frames.INITIAL_WINDOW_SIZE: 1}
    server.scripts = [[answer(body=b"too large")]]
    assert (await transport.post(server.url, (), b"long")).body == b"too large"
    await server.until(1, frames.RST_STREAM)


async def test_more_than_the_window_of_answers_is_read(server: RawServer, transport: Http2Transport) -> None:
    """The connection's window is 16 MiB, so without updates the 600 answers of 30 kB would not fit."""
    chunk = bytes(15_000)
    server.scripts = [
        [
            frames.headers_frames(1 + 2 * n, OK, end_stream=False)
            + frames.frame(frames.DATA, 0, 1 + 2 * n, chunk)
            + frames.frame(frames.DATA, frames.END_STREAM, 1 + 2 * n, chunk)
        ]
        for n in range(600)
    ]
    for _ in range(20):
        found = await asyncio.gather(*(transport.post(server.url, (), b"{}") for _ in range(30)))
        assert {len(a.body) for a in found} == {30_000}
    updates = [f for f in server.got if f[0] == frames.WINDOW_UPDATE]
    assert len(updates) >= 2


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=10))
def test_frames_are_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    wire = b"".join(frames.frame(n % 10, n % 256, n, data[: n * 7]) for n in range(12))
    whole = frames.FrameReader().feed(wire)
    reader, pieces, at = frames.FrameReader(), [], 0
    for cut in [*sorted(c * len(wire) // 200 for c in cuts), len(wire)]:
        pieces += reader.feed(wire[at:cut])
        at = cut
    assert pieces == whole
    assert len(whole) == 12


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["authorization", "content-type", "apns-id", "x-y"]), st.text("abc /:.", max_size=300)
        )
    )
)
def test_what_is_encoded_is_what_another_decoder_reads(headers: list[tuple[str, str]]) -> None:
    headers = [(name, value.strip()) for name, value in headers]
    import hpack

    block = fields.encode_request("POST", "example.com:443", "/3/device/abc") + fields.encode(headers)
    decoded = [(str(n), str(v)) for n, v in hpack.Decoder().decode(fields.NO_TABLE + block)]
    assert decoded == [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "example.com:443"),
        (":path", "/3/device/abc"),
        *headers,
    ]


@given(block=st.binary(max_size=60))
def test_any_bytes_are_a_status_or_a_violation(block: bytes) -> None:
    with contextlib.suppress(frames.ProtocolViolation):
        assert isinstance(fields.status_of(block), int)
    assert isinstance(dict(fields.AnswerHeaders(block)), dict)
