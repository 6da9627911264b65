"""What FCM is sent for each platform."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bellbuoy.adapters.fcm.payload import encode
from bellbuoy.model.delivery import Message
from bellbuoy.model.notification import Content
from bellbuoy.model.recipient import Platform


def message(**changed: Any) -> Message:
    fields: dict[str, Any] = {
        "delivery_id": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        "notification_id": "01J0000000000000000000000A",
        "endpoint": "tok:en",
        "content": Content(title="Order", body="On its way", data={"order": "17"}),
        "expires_at": 1_800_000_060.5,
        "ttl_s": 60,
        "platform": "android",
    }
    return Message(**{**fields, **changed})


def wire(**changed: Any) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(encode(message(**changed)))
    assert set(sent) == {"message"}
    return dict(sent["message"])


def test_android() -> None:
    assert wire() == {
        "token": "tok:en",
        "notification": {"title": "Order", "body": "On its way"},
        "data": {"order": "17"},
        "android": {
            "ttl": "60s",
            "priority": "NORMAL",
            "notification": {"tag": "01J0000000000000000000000A"},
        },
    }


def test_android_with_the_senders_collapse_key() -> None:
    android = wire(collapse_key="order-17", priority="high", ttl_s=0)["android"]
    assert android == {
        "ttl": "0s",
        "priority": "HIGH",
        "collapse_key": "order-17",
        "notification": {"tag": "order-17"},
    }


@pytest.mark.parametrize("platform", ["android", "ios", "web"])
def test_without_text_nothing_is_shown(platform: Platform) -> None:
    sent = wire(content=Content(data={"a": "b"}), platform=platform)
    assert "notification" not in sent
    assert sent["data"] == {"a": "b"}
    assert "notification" not in sent.get(platform, {})
    assert "notification" not in sent.get("webpush", {})


def test_ios() -> None:
    sent = wire(platform="ios", priority="high", collapse_key="order-17")
    assert "android" not in sent
    assert sent["apns"] == {
        "headers": {
            "apns-expiration": "1800000060",
            "apns-collapse-id": "order-17",
            "apns-push-type": "alert",
            "apns-priority": "10",
        },
        "payload": {"aps": {"sound": "default"}},
    }


@pytest.mark.parametrize(("priority", "expected"), [("high", "10"), ("normal", "5"), ("low", "1")])
def test_ios_priorities(priority: str, expected: str) -> None:
    assert wire(platform="ios", priority=priority)["apns"]["headers"]["apns-priority"] == expected


def test_ios_in_the_background() -> None:
    sent = wire(platform="ios", priority="high", content=Content(data={"a": "b"}), expires_at=0.0, ttl_s=0)
    assert sent["apns"]["payload"] == {"aps": {"content-available": 1}}
    headers = sent["apns"]["headers"]
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("background", "5")
    assert headers["apns-expiration"] == "0"


def test_ios_at_low_priority_makes_no_sound() -> None:
    assert "payload" not in wire(platform="ios", priority="low")["apns"]


def test_web() -> None:
    assert wire(platform="web", priority="low", collapse_key="order-17")["webpush"] == {
        "headers": {"TTL": "60", "Urgency": "low", "Topic": "order-17"},
        "notification": {"tag": "order-17"},
    }


@pytest.mark.parametrize("key", ["a b", "x" * 33, "é", "a/b"])
def test_a_topic_is_at_most_32_base64url_characters(key: str) -> None:
    first = wire(platform="web", collapse_key=key)["webpush"]["headers"]["Topic"]
    assert len(first) == 32
    assert first.replace("-", "").replace("_", "").isalnum()
    assert first == wire(platform="web", collapse_key=key)["webpush"]["headers"]["Topic"]
    assert first != wire(platform="web", collapse_key=key + "1")["webpush"]["headers"]["Topic"]


@pytest.mark.parametrize("key", ["é" * 32, "x" * 65, "日本"])
def test_a_collapse_id_is_at_most_64_bytes_of_ascii(key: str) -> None:
    collapse_id = wire(platform="ios", collapse_key=key)["apns"]["headers"]["apns-collapse-id"]
    assert collapse_id.isascii()
    assert 0 < len(collapse_id) <= 64


def test_empty_parts_are_left_out() -> None:
    assert wire(content=Content(title="Only"))["notification"] == {"title": "Only"}
    assert "data" not in wire(content=Content(body="Only"))


def test_the_same_message_gives_the_same_bytes() -> None:
    assert encode(message()) == encode(message())


def test_validate_only() -> None:
    assert json.loads(encode(message(), validate_only=True))["validate_only"] is True
