"""FcmProvider over a scripted transport: tokens, their renewal, and what becomes of a message meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bellbuoy.adapters.fcm import FcmProvider
from bellbuoy.adapters.transport import Headers, Response
from bellbuoy.clock import ManualClock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)
from tests.unit.adapters.fcm.test_answers import BAD_TOKEN, body
from tests.unit.adapters.fcm.test_payload import message
from tests.unit.adapters.transport.fakes import FakeTransport, answer

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SENT = answer(200, b'{"name": "projects/p/messages/1"}')
UNAUTHENTICATED = answer(401, body("UNAUTHENTICATED"))


class Google(FakeTransport):
    """Hands out numbered tokens of an hour, or what `oauth` says; sends are answered from the script."""

    def __init__(self, *replies: Any, expires_in: float = 3600) -> None:
        super().__init__(*replies)
        self.expires_in = expires_in
        self.oauth: Response | Exception | None = None
        self.gate: asyncio.Event | None = None
        self.assertions: list[dict[str, Any]] = []

    async def post(self, url: str, headers: Headers, body: bytes) -> Response:
        if not url.endswith("/token"):
            return await super().post(url, headers, body)
        form = parse_qs(body.decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        assertion = form["assertion"][0]
        options = {"verify_exp": False, "verify_iat": False}
        self.assertions.append(
            jwt.decode(
                assertion,
                KEY.public_key(),
                algorithms=["RS256"],
                audience="https://oauth.test/token",
                options=options,  # type: ignore[arg-type]
            )
        )
        number = len(self.assertions)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.oauth, Exception):
            raise self.oauth
        if self.oauth is not None:
            return self.oauth
        granted = {"access_token": f"t{number}", "expires_in": self.expires_in, "token_type": "Bearer"}
        return answer(200, json.dumps(granted).encode())

    @property
    def bearers(self) -> list[str]:
        return [headers["authorization"] for _url, headers, _body in self.requests]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(folder: Path, **changed: Any) -> Path:
    file = folder / "account.json"
    fields = {
        "type": "service_account",
        "project_id": "from-file",
        "private_key_id": "kid-1",
        "private_key": PEM,
        "client_email": "svc@p.iam.gserviceaccount.com",
        "token_uri": "https://oauth.test/token",
    }
    file.write_text(json.dumps({**fields, **changed}))
    return file


def provider(transport: FakeTransport, credentials: Path, clock: ManualClock, **changed: Any) -> FcmProvider:
    fields: dict[str, Any] = {"base_url": "https://fcm.test/", "project_id": "p"}
    return FcmProvider(
        **{**fields, **changed},
        credentials_file=credentials,
        transport=transport,
        clock=clock,
        rng=random.Random(1),
    )


async def test_a_message_is_sent_with_a_token_of_the_account(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    receipt = await provider(google, credentials, clock).send(message())
    assert (receipt.provider_status, receipt.message_id) == (200, "projects/p/messages/1")
    [(url, headers, _)] = google.requests
    assert url == "https://fcm.test/v1/projects/p/messages:send"
    assert headers == {"authorization": "Bearer t1", "content-type": "application/json"}
    [claims] = google.assertions
    assert claims["iss"] == "svc@p.iam.gserviceaccount.com"
    assert claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
    assert claims["iat"] == int(clock.time())
    assert claims["exp"] - claims["iat"] <= 3600


async def test_a_taken_message_needs_no_name(credentials: Path, clock: ManualClock) -> None:
    receipt = await provider(Google(answer(200, b"")), credentials, clock).send(message())
    assert (receipt.provider_status, receipt.message_id) == (200, None)


async def test_the_project_may_come_from_the_file(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    await provider(google, credentials, clock, project_id=None).send(message())
    assert "/projects/from-file/" in google.requests[0][0]


async def test_many_first_sends_ask_for_one_token(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    fcm = provider(google, credentials, clock)
    await asyncio.gather(*(fcm.send(message()) for _ in range(50)))
    assert len(google.assertions) == 1
    assert len(google.requests) == 50


async def test_a_token_is_renewed_ahead_and_nobody_waits(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    fcm = provider(google, credentials, clock)
    await fcm.send(message())
    await clock.advance(3600 - 361)
    await fcm.send(message())
    assert len(google.assertions) == 1
    google.gate = asyncio.Event()
    await clock.advance(361 - 239)
    await asyncio.gather(*(fcm.send(message()) for _ in range(10)))
    assert len(google.assertions) == 2
    assert set(google.bearers) == {"Bearer t1"}
    google.gate.set()
    await clock.advance(0)
    await fcm.send(message())
    assert google.bearers[-1] == "Bearer t2"


async def test_a_failed_early_renewal_costs_nothing(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    fcm = provider(google, credentials, clock)
    await fcm.send(message())
    google.oauth = answer(503)
    await clock.advance(3600 - 200)
    for _ in range(5):
        await fcm.send(message())
        await clock.advance(1)
    assert len(google.assertions) == 2
    await clock.advance(10)
    await fcm.send(message())
    await clock.advance(0)
    assert len(google.assertions) == 3
    await clock.advance(200)
    with pytest.raises(Transient):
        await fcm.send(message())


async def test_a_short_lived_token_is_used_for_half_its_life(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT, expires_in=60)
    fcm = provider(google, credentials, clock)
    for _ in range(3):
        await fcm.send(message())
        await clock.advance(9)
    assert len(google.assertions) == 1


async def test_a_rejected_token_is_replaced_once_for_all(credentials: Path, clock: ManualClock) -> None:
    google = Google(*[UNAUTHENTICATED] * 10, SENT)
    fcm = provider(google, credentials, clock)
    receipts = await asyncio.gather(*(fcm.send(message()) for _ in range(10)))
    assert len(receipts) == 10
    assert google.bearers == ["Bearer t1"] * 10 + ["Bearer t2"] * 10
    assert len(google.assertions) == 2
    first, again = google.requests[0][2], google.requests[10][2]
    assert first == again


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (UNAUTHENTICATED, "UNAUTHENTICATED"),
        (answer(403, body("PERMISSION_DENIED")), "PERMISSION_DENIED"),
        (answer(401, b"<html>"), "UNAUTHENTICATED"),
    ],
)
async def test_a_second_refusal_is_a_rejected_credential(
    credentials: Path, clock: ManualClock, refused: Response, code: str
) -> None:
    google = Google(refused)
    fcm = provider(google, credentials, clock)
    with pytest.raises(CredentialRejected) as caught:
        await fcm.send(message())
    assert caught.value.error_code == code
    assert len(google.assertions) == 2
    assert len(google.requests) == 2


async def test_a_missing_permission_is_no_flood_of_token_requests(credentials: Path, clock: ManualClock) -> None:
    google = Google(answer(403, body("PERMISSION_DENIED")))
    fcm = provider(google, credentials, clock)
    for _ in range(20):
        with pytest.raises(CredentialRejected):
            await fcm.send(message())
    assert len(google.assertions) == 2
    await clock.advance(31)
    with pytest.raises(CredentialRejected):
        await fcm.send(message())
    assert len(google.assertions) == 3


@pytest.mark.parametrize(
    "refused",
    [
        answer(401, body("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR")),
        answer(403, body("PERMISSION_DENIED", "SENDER_ID_MISMATCH")),
        answer(404, body("NOT_FOUND", "UNREGISTERED")),
        answer(404, b""),
        answer(503, body("UNAVAILABLE")),
        answer(400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT")),
    ],
)
async def test_no_other_failure_renews_or_repeats(credentials: Path, clock: ManualClock, refused: Response) -> None:
    google = Google(refused)
    with pytest.raises(ProviderError):
        await provider(google, credentials, clock).send(message())
    assert (len(google.assertions), len(google.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("oauth", "kind", "code"),
    [
        (answer(400, b'{"error": "invalid_grant"}'), CredentialRejected, "invalid_grant"),
        (answer(401, b'{"error": "invalid_client"}'), CredentialRejected, "invalid_client"),
        (answer(403, b""), CredentialRejected, "oauth_refused"),
        (answer(404, b"<html>"), CredentialRejected, "oauth_refused"),
        (answer(429, b""), Transient, "oauth_unavailable"),
        (answer(500, b""), Transient, "oauth_unavailable"),
        (answer(200, b"{}"), Transient, "oauth_unavailable"),
        (answer(200, b"<html>"), Transient, "oauth_unavailable"),
        (Transient("no", error_code="connect_failed"), Transient, "connect_failed"),
        # The message was not sent, so nothing about it is unknown.
        (OutcomeUnknown("lost", error_code="connection_lost"), Transient, "connection_lost"),
    ],
)
async def test_without_a_token_nothing_is_sent(
    credentials: Path,
    clock: ManualClock,
    oauth: Response | Exception,
    kind: type[ProviderError],
    code: str,
) -> None:
    google = Google(SENT)
    google.oauth = oauth
    fcm = provider(google, credentials, clock)
    with pytest.raises(kind) as caught:
        await fcm.send(message())
    assert type(caught.value) is kind
    assert caught.value.error_code == code
    assert google.requests == []
    google.oauth = None
    assert (await fcm.send(message())).provider_status == 200


async def test_a_cancelled_send_does_not_take_the_token_from_the_others(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    google.gate = asyncio.Event()
    fcm = provider(google, credentials, clock)
    first, second = asyncio.create_task(fcm.send(message())), asyncio.create_task(fcm.send(message()))
    await clock.advance(0)
    first.cancel()
    await clock.advance(0)
    assert first.cancelled()
    google.gate.set()
    assert (await second).provider_status == 200
    assert len(google.assertions) == 1


async def test_closing_while_a_token_is_fetched_fails_the_sends_cleanly(credentials: Path, clock: ManualClock) -> None:
    google = Google(SENT)
    google.gate = asyncio.Event()
    fcm = provider(google, credentials, clock)
    waiting = asyncio.create_task(fcm.send(message()))
    await clock.advance(0)
    await fcm.aclose()
    with pytest.raises(Transient):
        await waiting
    await fcm.aclose()
    assert google.closed == 2


@pytest.mark.parametrize(
    "healthy",
    [
        answer(400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", BAD_TOKEN)),
        answer(404, body("NOT_FOUND", "UNREGISTERED")),
        answer(400, body("INVALID_ARGUMENT")),
        SENT,
    ],
)
async def test_a_probe_is_content_when_only_the_token_is_wrong(
    credentials: Path, clock: ManualClock, healthy: Response
) -> None:
    google = Google(healthy)
    await provider(google, credentials, clock).probe()
    assert json.loads(google.requests[0][2])["validate_only"] is True


@pytest.mark.parametrize(
    ("ill", "kind"),
    [
        (answer(404, b""), CredentialRejected),
        (answer(503, b""), Transient),
        (UNAUTHENTICATED, CredentialRejected),
        (OutcomeUnknown("lost"), OutcomeUnknown),
    ],
)
async def test_a_probe_raises_as_send_does(
    credentials: Path, clock: ManualClock, ill: Response | Exception, kind: type[ProviderError]
) -> None:
    with pytest.raises(kind):
        await provider(Google(ill), credentials, clock).probe()


@pytest.mark.parametrize(
    "changed",
    [
        {"private_key": "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"},
        {"private_key": None},
        {"client_email": 7},
        {"token_uri": "http://oauth.example.com/token"},
        {
            "private_key": ec.generate_private_key(ec.SECP256R1())
            .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            .decode()
        },
    ],
)
def test_a_useless_credentials_file_is_a_configuration_error(
    tmp_path: Path, clock: ManualClock, changed: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(Google(SENT), write(tmp_path, **changed), clock)
    assert "providers.fcm.credentials_file" in (caught.value.hint or "")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_credentials_file_is_a_configuration_error(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(Google(SENT), tmp_path / "none.json", clock)
    assert "providers.fcm.credentials_file" in str(caught.value)


def test_a_missing_project_is_a_configuration_error(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(Google(SENT), write(tmp_path, project_id=None), clock, project_id=None)
    assert "providers.fcm.project_id" in str(caught.value)


async def test_gone_and_permanent_reach_the_caller(credentials: Path, clock: ManualClock) -> None:
    google = Google(
        answer(404, body("NOT_FOUND", "UNREGISTERED")),
        answer(400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT")),
    )
    fcm = provider(google, credentials, clock)
    with pytest.raises(RecipientGone):
        await fcm.send(message())
    with pytest.raises(Permanent):
        await fcm.send(message())
