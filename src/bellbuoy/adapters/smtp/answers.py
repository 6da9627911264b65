"""What a mail server's refusals and a lost session mean, as pure functions.

Source: RFC 5321, 4.2 (reply codes); RFC 3463 and 5248 (enhanced status codes); RFC 4954 (AUTH).
"""

from __future__ import annotations

import re
import socket
import ssl
from typing import Literal

from aiosmtplib import SMTPResponseException, SMTPTimeoutError

from bellbuoy.errors import (
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)

Stage = Literal["connect", "auth", "mail", "rcpt", "data", "written"]
"""How far a mail had got; once `written`, its end was sent and the server may have taken it."""

GREYLIST_WAIT_S = 60.0
"""Seconds to wait when a mailbox or server refuses for now; greylisting servers ask for a minute or more."""

_ENHANCED = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
_GONE = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})


def classify(status: int, text: str, stage: Stage) -> ProviderError:
    """Return what a refusal means for the delivery.

    An address counts as gone only on an enhanced status that says so, since a bare 550 is also what policies and spam
    filters answer. A refusal for now of one mailbox (greylisting, a full one) is no failure of the server.

    Args:
        status: the reply code, 400 to 599.
        text: the reply's text, of which only the enhanced status is used and kept.
        stage: what was refused.
    """
    match = _ENHANCED.match(text)
    enhanced = match[1] if match else ""
    code = enhanced or str(status)
    rejected = _configuration(status, enhanced, text, stage)
    if rejected is not None:
        return CredentialRejected(rejected[0], provider_status=status, error_code=code, hint=rejected[1])
    if status >= 500:
        if stage in ("rcpt", "data", "written") and enhanced in _GONE:
            return RecipientGone("the mail address does not exist", provider_status=status, error_code=code)
        return Permanent("the mail server refused the mail", provider_status=status, error_code=code)
    one_mailbox = stage == "rcpt" and status in (450, 451, 452)
    return Transient(
        "the mailbox is not available now" if one_mailbox else "the mail server asks to try later",
        throttled=one_mailbox,
        provider_status=status,
        error_code=code,
        retry_after_s=GREYLIST_WAIT_S if status in (450, 451, 452) else None,
    )


def _configuration(status: int, enhanced: str, text: str, stage: Stage) -> tuple[str, str] | None:
    """What is wrong on our side and its cure; None when the refusal is about the mail or for now."""
    if status < 500:
        return None
    if stage == "auth" or status in (530, 534, 535, 538):
        return "the mail server refused our login", "check the login in providers.smtp.url"
    if stage == "connect":
        return "the mail server refused us", "check providers.smtp.url, and that the server allows this machine"
    if stage == "mail" and enhanced.startswith(("5.7.", "5.1.")):
        return "the mail server refused our sender", "check providers.smtp.from"
    if stage == "rcpt" and "relay" in text.lower():
        return "the mail server does not relay for us", "give providers.smtp.url a login, or allow this machine"
    return None


def explain(error: Exception, stage: Stage) -> ProviderError:
    """Say what a driver's error means. Nothing of its text is kept: it holds addresses."""
    if isinstance(error, SMTPResponseException) and error.code >= 400:
        return classify(error.code, error.message, stage)
    if stage == "written":
        return OutcomeUnknown("the mail was written and not answered", error_code="connection_lost")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError | socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    hint = None
    if isinstance(cause, ssl.SSLError):
        code, hint = "tls_failed", "set tls.ca_file when the certificate is signed by an authority of your own"
    elif isinstance(cause, socket.gaierror):
        code = "dns_failed"
    elif isinstance(error, TimeoutError | SMTPTimeoutError):
        code = "connect_timeout" if stage == "connect" else "answer_timeout"
    else:
        code = "connect_failed" if stage == "connect" else "connection_lost"
    return Transient(f"the mail server failed before taking the mail, at {stage}", error_code=code, hint=hint)
