"""What a provider asks of an HTTP client, in our words, so that the client can be replaced."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from bellbuoy.errors import ConfigurationError

Headers = Sequence[tuple[str, str]]
"""Header names in lower case, and values of visible ASCII."""

ANSWER_BYTES_MAX = 65_536
"""Bytes of an answer's body that are read; the rest is dropped, since no provider's answer comes near it."""

RETRY_AFTER_S_MAX = 86_400.0
"""The longest wait in seconds that a Retry-After header can ask of us; a slip at the other end must not last a year."""


class Response(NamedTuple):
    """An answer. `headers` is looked up in lower case; `body` is the first `ANSWER_BYTES_MAX` bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries one request to one URL and brings back whatever was answered, of any status.

    TLS is always verified, redirects are never followed, and no proxy is taken from the environment. Nothing is sent
    twice, except where HTTP/2 says that the server has not touched the request (RFC 9113, 8.7).
    """

    async def post(self, url: str, headers: Headers, body: bytes) -> Response:
        """Send `body` to `url`.

        Raises:
            Transient: the request was not processed: no connection, or the server said so itself.
            OutcomeUnknown: it may have been written, and no whole answer came.

        Cancellation: returns at once; what had been written is not taken back.
        """
        ...

    async def get(self, url: str, headers: Headers) -> Response:
        """Ask for `url`; raises and cancels as `post` does."""
        ...

    async def renew(self) -> None:
        """Let go of every connection; requests in flight end as by `aclose`, and the next one connects anew."""
        ...

    async def aclose(self) -> None:
        """Close all connections; requests in flight end with `OutcomeUnknown`. Safe to call twice."""
        ...


def checked_url(url: str, setting: str) -> str:
    """Return `url` without its trailing slash, once it is fit to carry credentials.

    Args:
        url: https to any host, or plain http to this machine's loopback.
        setting: the setting it comes from, for the hint.

    Raises:
        ConfigurationError: it is not such a URL.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    problem = None
    if not host or parts.scheme not in ("http", "https") or any(c <= " " or c > "~" for c in url):
        problem = "is not an https URL"
    elif parts.username is not None or parts.query or parts.fragment:
        problem = "must have no user, query or fragment"
    elif parts.scheme == "http" and not is_loopback(host):
        problem = "is plain http to another machine"
    if problem:
        raise ConfigurationError(
            f"{setting} {problem}", hint=f"set {setting} to https://HOST[:PORT]; http is for loopback only"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine itself, where nobody else can listen to the line."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after_s(value: str | None, now: float) -> float | None:
    """Read a Retry-After header (RFC 9110, 10.2.3), given in seconds or as an HTTP date.

    Args:
        value: the header, None when there was none.
        now: epoch seconds.

    Returns:
        Seconds from `now`, at least 0 and at most `RETRY_AFTER_S_MAX`; None when there is none that can be read.
    """
    if value is None:
        return None
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
            # An HTTP date is in GMT; one that does not say so is read as if it did.
            seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    if not math.isfinite(seconds):
        return None
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX)
