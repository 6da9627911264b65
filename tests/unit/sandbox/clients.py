"""Clients of the stand-ins: real ones over the network, and a raw HTTP/2 one for what a good client hides."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import jwt
import msgspec
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.response import Response

from bellbuoy.clock import Clock
from bellbuoy.sandbox import Sandbox

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
DEVICE = "0a" * 32
TIMEOUT_S = 10.0


def http_client(sandbox: Sandbox, *, http2: bool) -> Client:
    """A client that trusts the sandbox's authority."""
    ca = Path(sandbox.wiring()["tls"]["ca_file"]).read_bytes()
    return ClientBuilder().http2(http2).add_root_certificate_pem(ca).timeout(timedelta(seconds=TIMEOUT_S)).build()


async def eventually(condition: Callable[[], bool]) -> None:
    """Give the loop turns until `condition` holds; fail when it does not in good time."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is a socket's work, which has no event
            await asyncio.sleep(0.001)


class Control:
    """The control API over HTTP."""

    def __init__(self, sandbox: Sandbox, client: Client) -> None:
        self._base = sandbox.urls["control"]
        self._client = client

    async def call(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        request = self._client.request(method, f"{self._base}/_control{path}")
        if document is not None:
            request = request.body_bytes(msgspec.json.encode(document))
        response = await request.build().send()
        body = bytes(await response.bytes())
        return response.status, msgspec.json.decode(body) if body else None

    async def fault(self, provider: str, **wish: object) -> dict[str, Any]:
        status, body = await self.call("PUT", f"/{provider}/fault", wish)
        assert status == 200, body
        found = body["fault"]
        assert isinstance(found, dict) or found is None
        return found or {}

    async def clear(self, provider: str) -> None:
        status, _ = await self.call("DELETE", f"/{provider}/fault")
        assert status == 200

    async def received(self, provider: str, query: str = "") -> dict[str, Any]:
        status, body = await self.call("GET", f"/{provider}/received{query}")
        assert status == 200
        assert isinstance(body, dict)
        return body


class FcmClient:
    """What a sender does with FCM."""

    def __init__(self, sandbox: Sandbox, client: Client, clock: Clock) -> None:
        wiring = sandbox.wiring()["providers"]["fcm"]
        self.base = wiring["base_url"]
        self.account = msgspec.json.decode(Path(wiring["credentials_file"]).read_bytes())
        self.path = f"/v1/projects/{wiring['project_id']}/messages:send"
        self.client = client
        self.clock = clock
        self.bearer: str | None = None

    def assertion(self, claims: dict[str, object] | None = None, key: str | None = None) -> str:
        now = int(self.clock.time())
        content = {
            "iss": self.account["client_email"],
            "scope": SCOPE,
            "aud": self.account["token_uri"],
            "iat": now,
            "exp": now + 3600,
            **(claims or {}),
        }
        return jwt.encode(content, key or self.account["private_key"], algorithm="RS256")

    async def token(self, assertion: str, grant: str = GRANT) -> tuple[int, Any]:
        form = {"grant_type": grant, "assertion": assertion}
        response = await self.client.post(self.account["token_uri"]).form(form).build().send()
        return response.status, msgspec.json.decode(bytes(await response.bytes()))

    async def login(self) -> None:
        status, body = await self.token(self.assertion())
        assert status == 200, body
        self.bearer = body["access_token"]

    async def post(self, document: object, path: str | None = None) -> Response:
        request = self.client.post(self.base + (path or self.path))
        if self.bearer is not None:
            request = request.bearer_auth(self.bearer)
        body = document if isinstance(document, bytes) else msgspec.json.encode(document)
        return await request.body_bytes(body).build().send()

    async def send(self, token: str = "device-1", **message: object) -> tuple[int, Any]:
        response = await self.post({"message": {"token": token, **message}})
        return response.status, msgspec.json.decode(bytes(await response.bytes()))


class ApnsClient:
    """What a sender does with APNs."""

    def __init__(self, sandbox: Sandbox, client: Client, clock: Clock) -> None:
        wiring = sandbox.wiring()["providers"]["apns"]
        self.base = wiring["base_url"]
        self.team_id = wiring["team_id"]
        self.key_id = wiring["key_id"]
        self.key = Path(wiring["key_file"]).read_text()
        self.topic = wiring["topic"]
        self.client = client
        self.clock = clock
        self.jwt: str | None = self.provider_token()

    def provider_token(
        self, *, key: str | None = None, kid: str | None = None, iss: str | None = None, age_s: int = 0
    ) -> str:
        claims = {"iss": iss or self.team_id, "iat": int(self.clock.time()) - age_s}
        return jwt.encode(claims, key or self.key, algorithm="ES256", headers={"kid": kid or self.key_id})

    def headers(self, **more: str | None) -> dict[str, str]:
        headers = {
            "authorization": None if self.jwt is None else f"bearer {self.jwt}",
            "apns-topic": self.topic,
            "apns-push-type": "alert",
            "apns-priority": "10",
            "apns-expiration": "0",
            "apns-id": str(uuid.uuid4()),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        return {name: value for name, value in headers.items() if value is not None}

    async def send(
        self, token: str = DEVICE, body: bytes | None = None, method: str = "POST", **headers: str | None
    ) -> tuple[int, str | None, Response]:
        """(status, reason, response)"""
        return await self.to(f"/3/device/{token}", body, method, **headers)

    async def to(
        self, path: str, body: bytes | None = None, method: str = "POST", **headers: str | None
    ) -> tuple[int, str | None, Response]:
        content = b'{"aps":{"alert":{"title":"Hi","body":"there"}},"order":"17"}' if body is None else body
        request = self.client.request(method, self.base + path).headers(self.headers(**headers))
        response = await request.body_bytes(content).build().send()
        answer = bytes(await response.bytes())
        return response.status, msgspec.json.decode(answer)["reason"] if answer else None, response


class RawHttp2:
    """A bare HTTP/2 connection: collects every event it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []
        self.closed = False
        self.error: Exception | None = None
        self.h2.initiate_connection()
        self.flush()
        self._task = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, sandbox: Sandbox, name: str) -> RawHttp2:
        context = ssl.create_default_context(cafile=sandbox.wiring()["tls"]["ca_file"])
        context.set_alpn_protocols(["h2"])
        address = urlsplit(sandbox.urls[name])
        return cls(*await asyncio.open_connection(address.hostname, address.port, ssl=context))

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    def request(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Send a request without waiting; the stream's id."""
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": path}
        self.h2.send_headers(stream_id, list({**pseudo, **headers}.items()))
        self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()
        return stream_id

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(65_536):
                self.events.extend(self.h2.receive_data(data))
                self.flush()
        except (OSError, h2.exceptions.ProtocolError) as error:
            self.error = error
        self.closed = True

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self, stream_id: int) -> int | None:
        for event in self.of(h2.events.ResponseReceived):
            if event.stream_id == stream_id:
                return int(dict(event.headers)[":status"])
        return None

    async def wait(self, condition: Callable[[], bool]) -> None:
        await eventually(condition)

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.transport.abort()
        await asyncio.sleep(0)
