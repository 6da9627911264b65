"""A request and its answer as the handlers see them: lean, since one of them is called thousands of times a second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from bellbuoy.errors import BellbuoyError, Invalid
from bellbuoy.intake.validate import parse
from bellbuoy.model.operation import ApiKey
from bellbuoy.service.sections import is_loopback

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")

encode = msgspec.json.Encoder().encode

JSON_TYPES = frozenset({b"application/json"})
NDJSON_TYPES = frozenset(
    {b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"}
)
BODY_WAIT_S_MAX = 30.0
"""Seconds in which a whole request body must have come."""


class HttpError(BellbuoyError):
    """An answer other than success that is about HTTP itself."""

    def __init__(
        self, status: int, code: str, message: str, *, hint: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code  # type: ignore[misc]
        self.headers = dict(headers or {})


class Reply:
    """A status, a body and headers."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: bytes = b"application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers: list[tuple[bytes, bytes]] = [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
        ]
        if headers:
            self.headers += [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]

    @classmethod
    def json(cls, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        """Any content that msgspec encodes."""
        return cls(status, encode(content), headers=headers)

    async def send(self, send: Send) -> None:
        """Write it out."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


class Call:
    """One request.

    For the audit log a handler says whom the request touches, besides a user in its path: `users` by their ids,
    `unnamed` how many without one; and `target`, what it is about otherwise.
    """

    __slots__ = ("_key", "_receive", "headers", "scope", "target", "unnamed", "users")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self._receive = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._key: ApiKey | None = None
        self.users: Sequence[str] = ()
        self.unnamed = 0
        self.target: str | None = None

    @property
    def key(self) -> ApiKey:
        """Who asks; only a handler whose route needs a scope may use it."""
        assert self._key is not None
        return self._key

    @property
    def asked_by(self) -> ApiKey | None:
        """Who asks, None when that is not known."""
        return self._key

    def authenticated(self, key: ApiKey) -> None:
        """It comes from whoever has this key."""
        self._key = key

    def header(self, name: bytes) -> str | None:
        """A header's value by its lower-case name."""
        value = self.headers.get(name)
        return value.decode("latin-1") if value is not None else None

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.scope["path_params"][name])

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters; one that is not `known`, or comes twice, is an error that says so."""
        pairs = parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise Invalid(
                    "the query is not valid",
                    errors=[(name[:64], "unknown parameter" + (f"; known are {', '.join(known)}" if known else ""))],
                )
            if name in found:
                raise Invalid("the query is not valid", errors=[(name, "given more than once")])
            found[name] = value
        return found

    @property
    def content_type(self) -> bytes:
        """The media type without its parameters, lower case, empty when there is none."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    async def body(self, limit: int, types: frozenset[bytes] = JSON_TYPES) -> bytes:
        """The whole body.

        Args:
            limit: its most bytes.
            types: media types that are understood; a request that names none is taken at its word.

        Raises:
            HttpError: 415, 413, or 408 when it does not come within `BODY_WAIT_S_MAX`.
        """
        if self.content_type and self.content_type not in types:
            wanted = " or ".join(sorted(t.decode() for t in types))
            raise HttpError(415, "unsupported_media_type", f"the body must be {wanted}", hint="set Content-Type")
        announced = self.headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            raise _too_large(limit)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]
        else:
            async with asyncio.timeout(BODY_WAIT_S_MAX):
                body = await self._rest(message, limit)
        if len(body) > limit:
            raise _too_large(limit)
        return body

    async def _rest(self, message: MutableMapping[str, Any], limit: int) -> bytes:
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise HttpError(400, "disconnected", "the client went away")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()

    async def left(self) -> None:
        """Wait until the client goes away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def document(self, decoder: msgspec.json.Decoder[T], limit: int) -> T:
        """The body as a document of one type; raises as `body` and `parse` do."""
        return parse(await self.body(limit), decoder)


def from_here(call: Call) -> bool:
    """Whether a program on this machine asks, by a name of this machine.

    A name elsewhere that points here would let a page in a browser ask (DNS rebinding), and a proxy speaks for others.
    """
    client = call.scope.get("client")
    if client is None or not is_loopback(client[0]) or b"x-forwarded-for" in call.headers:
        return False
    return is_loopback(urlsplit("//" + (call.header(b"host") or "localhost")).hostname or "")


def _too_large(limit: int) -> HttpError:
    return HttpError(413, "body_too_large", f"the body is over {limit} bytes", headers={"Connection": "close"})


def retry_after(seconds: float | None) -> dict[str, str]:
    """The Retry-After header for a wait in seconds, none when there is no wait."""
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
