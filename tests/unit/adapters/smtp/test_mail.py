"""What a mail looks like, and what cannot be put into one."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import pytest

from bellbuoy.adapters.smtp.mail import compose, queue_name
from bellbuoy.model.delivery import Message
from bellbuoy.model.notification import Content

DATE = datetime(2027, 1, 15, 8, tzinfo=UTC)


def message(**changed: Any) -> Message:
    fields: dict[str, Any] = {
        "delivery_id": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        "notification_id": "n1",
        "endpoint": "someone@example.com",
        "content": Content(title="Order", body="On its way.\n.\nSoon", data={"order": "17"}),
        "expires_at": 1_800_000_060.0,
        "ttl_s": 60,
    }
    return Message(**{**fields, **changed})


def parsed(sender: str = "Bellbuoy <noreply@bell.test>", **changed: Any) -> EmailMessage:
    raw = compose(message(**changed), sender, DATE)
    assert raw.isascii()
    assert max(len(line) for line in raw.split(b"\r\n")) <= 998
    read = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    assert not read.defects
    return read


def test_a_mail() -> None:
    mail = parsed()
    assert dict(mail.items()) == {
        "Subject": "Order",
        "From": "Bellbuoy <noreply@bell.test>",
        "To": "someone@example.com",
        "Date": "Fri, 15 Jan 2027 08:00:00 +0000",
        "Message-ID": "<6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569@bell.test>",
        "Auto-Submitted": "auto-generated",
        "Content-Type": 'text/plain; charset="utf-8"',
        "Content-Transfer-Encoding": "quoted-printable",
        "MIME-Version": "1.0",
    }
    assert mail.get_content().replace("\r\n", "\n") == "On its way.\n.\nSoon\n"


def test_the_same_delivery_is_the_same_mail() -> None:
    assert compose(message(), "a@b.test", DATE) == compose(message(), "a@b.test", DATE)


@pytest.mark.parametrize(
    "title",
    [
        "Hello\r\nBcc: victim@example.com",
        "Hello\nBcc: victim@example.com\n\nbody",
        "Hello\rBcc: victim@example.com",
        "Hello\x00\x0b\x0cBcc: victim@example.com",
        "Hello\u2028Bcc: victim@example.com\u0085X: y",
        "=?utf-8?q?Hello=0D=0ABcc=3A_victim=40example.com?=",
        "Hello " * 400 + "\r\n Bcc: victim@example.com",
        "日本" * 200 + "\r\nBcc: victim@example.com",
        "\ud800Hello",
    ],
)
def test_no_title_can_add_a_header(title: str) -> None:
    mail = parsed(content=Content(title=title, body="b"))
    assert mail["Bcc"] is None
    assert mail["X"] is None
    assert len(mail.items()) == 9
    assert mail.get_content().replace("\r\n", "\n") == "b\n"


def test_any_language_survives() -> None:
    mail = parsed(content=Content(title="Пакет 📦 прибыл", body="日本語\n" * 50 + "é" * 2_000))
    assert mail["Subject"] == "Пакет 📦 прибыл"
    assert mail.get_content().replace("\r\n", "\n") == "日本語\n" * 50 + "é" * 2_000 + "\n"


def test_without_a_title_the_first_line_is_the_subject() -> None:
    mail = parsed(content=Content(body="\nFirst line\nsecond"))
    assert mail["Subject"] == "First line"
    assert len(parsed(content=Content(body="x" * 500))["Subject"]) == 200


def test_without_a_body_the_title_is_the_text() -> None:
    assert parsed(content=Content(title="Only")).get_content().replace("\r\n", "\n") == "Only\n"


@pytest.mark.parametrize(("priority", "expected"), [("high", "high"), ("normal", None), ("low", "low")])
def test_importance(priority: str, expected: str | None) -> None:
    assert parsed(priority=priority)["Importance"] == expected


def test_a_lone_surrogate_in_the_body_is_replaced() -> None:
    assert parsed(content=Content(title="t", body="a\ud800b")).get_content().replace("\r\n", "\n") == "a?b\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("2.0.0 Ok: queued as 4XyZ", "4XyZ"),
        ("OK id=1tA-0007-Xy", "1tA-0007-Xy"),
        ("2.0.0 OK", None),
        ("", None),
    ],
)
def test_the_servers_name_for_a_mail(words: str, name: str | None) -> None:
    assert queue_name(words) == name
