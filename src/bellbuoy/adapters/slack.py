"""Messages to a channel over an incoming webhook of Slack, or of anything that speaks it, as a `Pager`.

Source: Slack's "Sending messages using incoming webhooks", "Formatting message text" and "Block Kit" references.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

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

HEADER_CHARS_MAX = 150
SECTION_CHARS_MAX = 3_000
TEXT_CHARS_MAX = 4_000

QUOTA_WAIT_S = 1.0
"""Seconds to wait after a 429 without Retry-After: a webhook takes about one message a second."""

_SIGNS = {"trigger": "🔴", "acknowledge": "🟡", "resolve": "🟢"}
_WORDS = frozenset(
    {
        "invalid_payload",
        "no_text",
        "user_not_found",
        "channel_not_found",
        "channel_is_archived",
        "action_prohibited",
        "posting_to_general_channel_denied",
        "too_many_attachments",
        "no_service",
        "no_service_id",
        "no_team",
        "team_disabled",
        "invalid_token",
        "invalid_blocks",
        "rollup_error",
    }
)
"""The words that Slack answers with; any other body may quote what it was sent."""

_encode = msgspec.json.Encoder().encode


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 2xx means for the message. 400, 403, 404 and 410 are final.

    Args:
        http: the HTTP status.
        body: the answer's body: one word, when it comes from Slack.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    word = body[:64].decode("ascii", "replace").strip()
    code = word if word in _WORDS else None
    wait_s = retry_after_s(retry_after, now)
    if http == 429:
        return Transient(
            "Slack asks for less",
            throttled=True,
            provider_status=http,
            error_code=code,
            retry_after_s=QUOTA_WAIT_S if wait_s is None else wait_s,
        )
    if http == 504:
        return OutcomeUnknown("a gateway before Slack had no answer in time", provider_status=http)
    if http >= 500 or http == 408:
        return Transient(f"Slack failed with HTTP {http}", provider_status=http, error_code=code, retry_after_s=wait_s)
    if http in (401, 403, 404, 405, 410) or http < 400:
        return CredentialRejected(
            f"Slack refused our webhook with HTTP {http}",
            provider_status=http,
            error_code=code,
            hint="make a new incoming webhook for a channel that exists and set alerts.slack.webhook_url",
        )
    return Permanent(f"Slack refused the message as it stands with HTTP {http}", provider_status=http, error_code=code)


def message(alert: Alert) -> dict[str, Any]:
    """The message in Block Kit, and in `text` for notifications and for whoever cannot show blocks."""
    title = f"{_SIGNS[alert.action]} {alert.title}"
    when = datetime.fromtimestamp(alert.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    about = f"Incident `{_escaped(alert.incident)}` · {_escaped(alert.component)} · {alert.severity} · {when}"
    if alert.repeated:
        about += " · this may have been said before"
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": cut(title, HEADER_CHARS_MAX)}}
    ]
    if alert.description:
        text = cut(_escaped(alert.description), SECTION_CHARS_MAX)
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text}})
    if alert.action == "trigger":
        link = f"<{_escaped(alert.runbook)}|Runbook>"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": link}})
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": cut(about, SECTION_CHARS_MAX)}]})
    return {"text": cut(_escaped(f"{title} ({alert.incident})"), TEXT_CHARS_MAX), "blocks": blocks}


class Slack:
    """Posts each alert as one message.

    A webhook knows no idempotency, so a message whose outcome is unknown is said again, at most `repeats_max` times,
    with a word that it is: nobody being told is worse than somebody being told twice.

    Args:
        webhook_url: a secret: whoever knows it can post.
        transport: closed with it.
        clock: its wall time reads a Retry-After that is a date.

    Raises:
        ConfigurationError: the URL is missing or not usable.
    """

    name: ClassVar[str] = "slack"
    repeat_after_s: ClassVar[float] = 5.0
    repeats_max: ClassVar[int | None] = 3

    def __init__(self, *, webhook_url: str, transport: Transport, clock: Clock) -> None:
        if not webhook_url:
            raise ConfigurationError("alerts.slack.webhook_url is missing", hint="set alerts.slack.webhook_url")
        self._url = checked_url(webhook_url, "alerts.slack.webhook_url")
        self._transport = transport
        self._clock = clock

    async def send(self, alert: Alert) -> str | None:
        """See `Pager.send`; a webhook gives messages no name."""
        # The header is nothing to Slack; what stands in for it, or between, can tell messages of one incident by it.
        answer = await self._post(_encode(message(alert)), ("x-bellbuoy-id", alert.incident))
        if not 200 <= answer.status < 300:
            raise self._failure(answer)
        return None

    async def probe(self) -> None:
        """Post a message without text, which a webhook that works refuses with 400, having looked at the channel."""
        answer = await self._post(b'{"text":""}')
        if answer.status != 400 and not 200 <= answer.status < 300:
            raise self._failure(answer)

    async def aclose(self) -> None:
        """See `Pager.aclose`."""
        await self._transport.aclose()

    async def _post(self, body: bytes, *headers: tuple[str, str]) -> Response:
        return await self._transport.post(self._url, (("content-type", "application/json"), *headers), body)

    def _failure(self, answer: Response) -> ProviderError:
        return classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())


def _escaped(text: str) -> str:
    """Slack reads these three characters as its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
