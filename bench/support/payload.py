"""The one notification that everything sends, as a client posts it and as the provider gets it."""

from __future__ import annotations

import json
from typing import Any

PROJECT = "bench"
PATH = f"/v1/projects/{PROJECT}/messages:send"
ANSWER = json.dumps({"name": f"projects/{PROJECT}/messages/1"})
TOKEN = "t" * 140
TITLE = "Order shipped"
BODY = "It is on its way"
DATA = {"order": "17"}


def posted() -> bytes:
    """Return the body of `POST /v1/notifications`."""
    device = {"platform": "android", "provider": "fcm", "token": TOKEN}
    content = {"title": TITLE, "body": BODY, "data": DATA}
    return json.dumps({"recipient": {"device": device}, "content": content, "category": "orders"}).encode()


def fcm_message(token: str, title: str, body: str, data: dict[str, str]) -> dict[str, Any]:
    """Return what FCM is sent: the fields that Bellbuoy's own provider sends for the same notification."""
    return {
        "message": {
            "token": token,
            "notification": {"title": title, "body": body},
            "data": data,
            "android": {"priority": "NORMAL", "ttl": "86400s"},
        }
    }
