"""What refusals mean, by where they came."""

from __future__ import annotations

import pytest

from bellbuoy.adapters.smtp.answers import Stage, classify
from bellbuoy.errors import CredentialRejected, Permanent, ProviderError, RecipientGone, Transient


@pytest.mark.parametrize(
    ("status", "text", "stage", "kind", "code"),
    [
        (550, "5.1.1 <a@b.test> no such user", "rcpt", RecipientGone, "5.1.1"),
        (550, "5.1.2 no such domain", "rcpt", RecipientGone, "5.1.2"),
        (553, "5.1.3 bad syntax", "rcpt", RecipientGone, "5.1.3"),
        (550, "5.1.6 moved", "rcpt", RecipientGone, "5.1.6"),
        (556, "5.1.10 null MX", "rcpt", RecipientGone, "5.1.10"),
        (550, "5.2.1 disabled", "rcpt", RecipientGone, "5.2.1"),
        (550, "5.1.1 unknown", "written", RecipientGone, "5.1.1"),
        (550, "no such user", "rcpt", Permanent, "550"),
        (550, "said 5.1.1 somewhere", "rcpt", Permanent, "550"),
        (550, "5.1.17 odd", "rcpt", Permanent, "5.1.17"),
        (550, "5.7.1 blocked by policy", "rcpt", Permanent, "5.7.1"),
        (554, "5.7.1 <a@b.test>: Relay access denied", "rcpt", CredentialRejected, "5.7.1"),
        (552, "5.3.4 too big", "mail", Permanent, "5.3.4"),
        (552, "5.2.2 mailbox full", "rcpt", Permanent, "5.2.2"),
        (554, "5.7.1 spam", "written", Permanent, "5.7.1"),
        (554, "no", "data", Permanent, "554"),
        (550, "5.7.60 not your sender", "mail", CredentialRejected, "5.7.60"),
        (553, "5.1.8 no such sender domain", "mail", CredentialRejected, "5.1.8"),
        (530, "5.7.0 log in first", "mail", CredentialRejected, "5.7.0"),
        (530, "5.7.0 STARTTLS first", "rcpt", CredentialRejected, "5.7.0"),
        (535, "5.7.8 wrong", "auth", CredentialRejected, "5.7.8"),
        (534, "too weak", "auth", CredentialRejected, "534"),
        (504, "not implemented", "auth", CredentialRejected, "504"),
        (554, "no service for you", "connect", CredentialRejected, "554"),
        (421, "4.3.2 shutting down", "connect", Transient, "4.3.2"),
        (421, "too busy", "mail", Transient, "421"),
        (454, "4.7.0 login broken for now", "auth", Transient, "4.7.0"),
        (450, "4.2.0 greylisted", "rcpt", Transient, "4.2.0"),
        (451, "4.7.1 try later", "rcpt", Transient, "4.7.1"),
        (452, "4.2.2 full", "rcpt", Transient, "4.2.2"),
        (451, "4.3.0 local error", "written", Transient, "4.3.0"),
        (452, "4.3.1 disk full", "mail", Transient, "4.3.1"),
    ],
)
def test_every_refusal(status: int, text: str, stage: Stage, kind: type[ProviderError], code: str) -> None:
    error = classify(status, text, stage)
    assert type(error) is kind
    assert error.error_code == code
    assert error.provider_status == status
    assert "b.test" not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    ("status", "stage", "throttled", "wait_s"),
    [
        (450, "rcpt", True, 60.0),
        (451, "rcpt", True, 60.0),
        (452, "rcpt", True, 60.0),
        (451, "written", False, 60.0),
        (452, "mail", False, 60.0),
        (421, "rcpt", False, None),
        (421, "connect", False, None),
    ],
)
def test_one_mailbox_is_not_the_server(status: int, stage: Stage, throttled: bool, wait_s: float | None) -> None:
    error = classify(status, "", stage)
    assert isinstance(error, Transient)
    assert (error.throttled, error.retry_after_s) == (throttled, wait_s)
