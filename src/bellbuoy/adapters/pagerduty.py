"""Pages over PagerDuty's Events API v2, as a `Pager`.

Source: PagerDuty's "Send an alert event" and "PD-CEF" in its developer documentation.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from bellbuoy.adapters.text import cut
from bellbuoy.adapters.transport import Response, Transport, checked_url, retry_after_s
from bellbuoy.clock import Clock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    Transient,
)
from bellbuoy.model.operation import Alert

SUMMARY_CHARS_MAX = 1_024
DEDUP_KEY_CHARS_MAX = 255
DETAIL_CHARS_MAX = 16_384
"""The longest description; the whole event may have 512 KB, and nobody reads as much on a phone."""

QUOTA_WAIT_S = 10.0
"""Seconds to wait after a 429 without Retry-After; the limit is per minute and service, and passes quickly."""

PROBE_KEY = "bellbuoy-doctor"
"""Nothing is ever triggered under it, so resolving it does nothing but show that the routing key is taken."""

_encode = msgspec.json.Encoder().encode


class _Said(Struct):
    dedup_key: str | None = None
    errors: list[str] = []


_decode = msgspec.json.Decoder(_Said).decode


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 2xx means for the page. Its 400 is final, whatever it is about.

    A 503 was not worked on; before any other 5xx the event may have been taken, which a second one does not mind.

    Args:
        http: the HTTP status.
        body: the answer's body, whatever it is.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    wait_s = retry_after_s(retry_after, now)
    if http == 429:
        return Transient(
            "PagerDuty asks for less",
            throttled=True,
            provider_status=http,
            retry_after_s=QUOTA_WAIT_S if wait_s is None else wait_s,
        )
    if http in (408, 503):
        return Transient(f"PagerDuty failed with HTTP {http}", provider_status=http, retry_after_s=wait_s)
    if http >= 500:
        return OutcomeUnknown(f"PagerDuty failed with HTTP {http}", provider_status=http, retry_after_s=wait_s)
    if http in (401, 403, 404, 405) or http < 400 or any("routing key" in one.lower() for one in _errors(body)):
        return CredentialRejected(
            f"PagerDuty refused our routing key or address with HTTP {http}",
            provider_status=http,
            hint="check alerts.pagerduty.routing_key, of an integration of the type Events API v2, and base_url",
        )
    return Permanent(f"PagerDuty refused the event as it stands with HTTP {http}", provider_status=http)


def _errors(body: bytes) -> list[str]:
    try:
        return _decode(body).errors
    except msgspec.MsgspecError:
        return []


class PagerDuty:
    """Sends each alert as one event; the incident's id is its `dedup_key`, so telling twice pages once.

    Args:
        base_url: `https://events.pagerduty.com`, or its European twin.
        routing_key: of an integration of the type Events API v2.
        source: names this machine.
        transport: closed with it.
        clock: its wall time reads a Retry-After that is a date.

    Raises:
        ConfigurationError: the key is missing or the address is not usable.
    """

    name: ClassVar[str] = "pagerduty"
    repeat_after_s: ClassVar[float] = 0.0
    repeats_max: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        base_url: str = "https://events.pagerduty.com",
        routing_key: str,
        source: str,
        transport: Transport,
        clock: Clock,
    ) -> None:
        if not routing_key:
            raise ConfigurationError("alerts.pagerduty.routing_key is missing", hint="set alerts.pagerduty.routing_key")
        self._url = f"{checked_url(base_url, 'alerts.pagerduty.base_url')}/v2/enqueue"
        self._routing_key = routing_key
        self._source = source
        self._transport = transport
        self._clock = clock

    async def send(self, alert: Alert) -> str | None:
        """See `Pager.send`."""
        event: dict[str, Any] = {"event_action": alert.action, "dedup_key": alert.incident[:DEDUP_KEY_CHARS_MAX]}
        if alert.action == "trigger":
            event["client"] = "Bellbuoy"
            event["links"] = [{"href": alert.runbook, "text": "Runbook"}]
            event["payload"] = {
                "summary": cut(alert.title, SUMMARY_CHARS_MAX),
                "source": self._source,
                "severity": alert.severity,
                "timestamp": datetime.fromtimestamp(alert.at, UTC).isoformat(),
                "component": alert.component,
                "group": "bellbuoy",
                "custom_details": {
                    "incident": alert.incident,
                    "description": cut(alert.description, DETAIL_CHARS_MAX),
                    "runbook": alert.runbook,
                },
            }
        return await self._post(event)

    async def probe(self) -> None:
        """Resolve what was never triggered, which pages nobody."""
        await self._post({"event_action": "resolve", "dedup_key": PROBE_KEY})

    async def aclose(self) -> None:
        """See `Pager.aclose`."""
        await self._transport.aclose()

    async def _post(self, event: dict[str, Any]) -> str | None:
        body = _encode({"routing_key": self._routing_key, **event})
        answer = await self._transport.post(self._url, (("content-type", "application/json"),), body)
        if not 200 <= answer.status < 300:
            raise self._failure(answer)
        try:
            return _decode(answer.body).dedup_key
        except msgspec.MsgspecError:
            # It has taken the event, whatever it said.
            return None

    def _failure(self, answer: Response) -> ProviderError:
        return classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())
