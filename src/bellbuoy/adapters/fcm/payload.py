"""The body of `messages:send` for one message.

Source: Firebase's reference of the REST resource `projects.messages`; RFC 8030 for web push's Topic and TTL.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import msgspec

from bellbuoy.model.delivery import Message
from bellbuoy.model.notification import Priority

APNS_COLLAPSE_BYTES_MAX = 64
WEB_TOPIC_CHARS_MAX = 32

_URGENCY: dict[Priority, str] = {"high": "high", "normal": "normal", "low": "low"}
_APNS_PRIORITY: dict[Priority, str] = {"high": "10", "normal": "5", "low": "1"}
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,32}")

_encode = msgspec.json.Encoder().encode


def encode(message: Message, *, validate_only: bool = False) -> bytes:
    """Write the request's body; the same message, its ttl included, always gives the same bytes.

    Without title and body it is a data message, which the app gets without the system showing anything.

    Args:
        message: what to send. Its `collapse_key`, else its notification id, names what it replaces on the device, so
            that a retry that arrives twice is shown once.
        validate_only: let FCM check everything and deliver nothing.
    """
    content = message.content
    shown = bool(content.title or content.body)
    tag = message.collapse_key or message.notification_id
    wire: dict[str, Any] = {"token": message.endpoint}
    if shown:
        wire["notification"] = _texts(message)
    if content.data:
        wire["data"] = content.data
    if message.platform == "ios":
        wire["apns"] = _apns(message, shown, tag)
    elif message.platform == "web":
        wire["webpush"] = _webpush(message, shown, tag)
    else:
        wire["android"] = _android(message, shown, tag)
    return _encode({"message": wire, "validate_only": True} if validate_only else {"message": wire})


def _texts(message: Message) -> dict[str, str]:
    texts = {}
    if message.content.title:
        texts["title"] = message.content.title
    if message.content.body:
        texts["body"] = message.content.body
    return texts


def _android(message: Message, shown: bool, tag: str) -> dict[str, Any]:
    android: dict[str, Any] = {
        "ttl": f"{message.ttl_s}s",
        "priority": "HIGH" if message.priority == "high" else "NORMAL",
    }
    if message.collapse_key is not None:
        # Only the sender's own key: FCM keeps at most four different ones for a device, and drops all but the last
        # message of each while the device is away.
        android["collapse_key"] = message.collapse_key
    if shown:
        android["notification"] = {"tag": tag}
    return android


def _apns(message: Message, shown: bool, tag: str) -> dict[str, Any]:
    headers = {
        "apns-expiration": str(int(message.expires_at)),
        "apns-collapse-id": short_ascii(tag, APNS_COLLAPSE_BYTES_MAX),
        "apns-push-type": "alert" if shown else "background",
        "apns-priority": _APNS_PRIORITY[message.priority] if shown else "5",
    }
    if not shown:
        aps: dict[str, Any] = {"content-available": 1}
    else:
        aps = {} if message.priority == "low" else {"sound": "default"}
    return {"headers": headers, "payload": {"aps": aps}} if aps else {"headers": headers}


def _webpush(message: Message, shown: bool, tag: str) -> dict[str, Any]:
    topic = tag if _TOPIC.fullmatch(tag) else short_ascii("", WEB_TOPIC_CHARS_MAX, of=tag)
    webpush: dict[str, Any] = {
        "headers": {"TTL": str(message.ttl_s), "Urgency": _URGENCY[message.priority], "Topic": topic}
    }
    if shown:
        webpush["notification"] = {"tag": tag}
    return webpush


def short_ascii(name: str, chars_max: int, *, of: str | None = None) -> str:
    """Return `name` if it is printable ASCII of at most `chars_max` characters, else a digest that stands for it."""
    if of is None and name and len(name) <= chars_max and name.isascii() and name.isprintable():
        return name
    digest = hashlib.sha256((name if of is None else of).encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")[:chars_max]
