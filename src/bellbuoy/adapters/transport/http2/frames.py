"""Frames of HTTP/2 (RFC 9113, 4 and 6) to bytes and back; no state but the bytes of an unfinished frame."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES_MAX = 16_384
"""The largest payload that we take, and the largest that every peer takes."""

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    1,
    2,
    3,
    4,
    5,
    6,
)

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = (
    0,
    1,
    3,
    6,
    7,
    8,
    9,
)

Frame = tuple[int, int, int, bytes]
"""kind, flags, stream, payload"""

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")


class ProtocolViolation(Exception):
    """The peer broke the protocol; `code` is the error that the connection ends with (RFC 9113, 7)."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame; `payload` is at most `FRAME_BYTES_MAX` bytes."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def headers_frames(stream: int, block: bytes, *, end_stream: bool) -> bytes:
    """A field block as HEADERS and as many CONTINUATIONs as it takes."""
    ending = END_STREAM if end_stream else 0
    if len(block) <= FRAME_BYTES_MAX:
        return frame(HEADERS, END_HEADERS | ending, stream, block)
    parts = [block[at : at + FRAME_BYTES_MAX] for at in range(0, len(block), FRAME_BYTES_MAX)]
    frames = [frame(HEADERS, ending, stream, parts[0])]
    frames += [frame(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    return b"".join([*frames, frame(CONTINUATION, END_HEADERS, stream, parts[-1])])


def settings_frame(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream: int, more: int) -> bytes:
    """Let the peer send `more` bytes, on one stream or with 0 on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(more))


def rst_stream(stream: int, code: int) -> bytes:
    """End one stream."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(code: int) -> bytes:
    """Say that the connection ends; a server opens no streams with us, so the last one is 0."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(0) + _NUMBER.pack(code))


def number(payload: bytes) -> int:
    """The 32 bits that WINDOW_UPDATE and RST_STREAM carry. Raises ProtocolViolation when there are not so many."""
    if len(payload) != 4:
        raise ProtocolViolation(FRAME_SIZE_ERROR, "a frame of the wrong size")
    return int(_NUMBER.unpack(payload)[0])


def settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS frame. Raises ProtocolViolation when it is cut short."""
    if len(payload) % 6:
        raise ProtocolViolation(FRAME_SIZE_ERROR, "a SETTINGS frame of the wrong size")
    return list(_SETTING.iter_unpack(payload))


def content(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without its padding. Raises ProtocolViolation when the padding is longer."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolViolation(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises ProtocolViolation when one is larger than we allow."""
        if self._rest:
            data = self._rest + data
        frames: list[Frame] = []
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            size = high << 8 | low
            if size > FRAME_BYTES_MAX:
                raise ProtocolViolation(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if end - at - 9 < size:
                break
            at += 9
            frames.append((kind, flags, stream & 0x7FFFFFFF, data[at : at + size]))
            at += size
        self._rest = data[at:]
        return frames
