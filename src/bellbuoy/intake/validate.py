"""Read a client's document and say exactly what is wrong with it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from bellbuoy.errors import BellbuoyError, Invalid
from bellbuoy.model.notification import PUSH_PAYLOAD_BYTES_MAX, Request, push_payload_bytes
from bellbuoy.model.recipient import token_problem

T = TypeVar("T")


class NotJson(BellbuoyError):
    """The body is not JSON at all."""

    code = "not_json"


_decode_request = msgspec.json.Decoder(Request).decode


def parse_request(body: bytes) -> Request:
    """A notification from JSON.

    Raises:
        NotJson: the body is not JSON.
        Invalid: it is JSON but not a notification; `errors` names the places. Code `payload_too_large` when it is one
            that no push provider would take.
    """
    try:
        request = _decode_request(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise problem(body, error) from None
    check(request)
    return request


def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Any other document, with the same errors."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise problem(body, error) from None


def problem(body: bytes, error: Exception) -> BellbuoyError:
    """What to tell the client about a body that did not decode."""
    if not isinstance(error, msgspec.ValidationError) or not _is_json(body):
        return NotJson(f"the body is not JSON: {error}", hint="send one JSON document in UTF-8")
    message, _, path = str(error).partition(" - at `")
    return Invalid("the document is not valid", errors=[(path.removesuffix("`") or "$", message)])


def _is_json(body: bytes) -> bool:
    """Whether a body that failed as the wanted type is JSON of another type."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def check(request: Request) -> None:
    """What the types alone cannot say; raises Invalid."""
    errors: list[tuple[str, str]] = []
    recipient, content = request.recipient, request.content
    ways = [w for w in (recipient.user_id, recipient.device, recipient.email, recipient.phone) if w is not None]
    if len(ways) != 1:
        errors.append(("$.recipient", "Expected exactly one of user_id, device, email, phone"))
    if recipient.device is not None:
        device = recipient.device
        wrong = token_problem(device.platform, device.provider, device.token)
        if wrong:
            errors.append(("$.recipient.device.token", wrong))
    if not (content.title or content.body or content.data):
        errors.append(("$.content", "Expected a title, a body or data"))
    if request.channels is not None and len(set(request.channels)) != len(request.channels):
        errors.append(("$.channels", "Expected each channel once"))
    if request.collapse_key is not None and len(request.collapse_key.encode()) > 64:
        errors.append(("$.collapse_key", "Expected at most 64 bytes of UTF-8"))
    if request.send_at is not None and not 1970 < request.send_at.year < 3000:
        errors.append(("$.send_at", "Expected a time between the years 1971 and 2999"))
    if errors:
        raise Invalid("the notification is not valid", errors=errors)
    push = "push" in request.channels if request.channels is not None else not (recipient.email or recipient.phone)
    # Short content cannot be too long however it is escaped, so most notifications are not encoded for this.
    if push and _weight(request) > PUSH_PAYLOAD_BYTES_MAX // 6:
        size = push_payload_bytes(content)
        if size > PUSH_PAYLOAD_BYTES_MAX:
            raise Invalid(
                f"the content makes a push payload of {size} bytes; providers take {PUSH_PAYLOAD_BYTES_MAX}",
                errors=[("$.content", f"{size} bytes of push payload, at most {PUSH_PAYLOAD_BYTES_MAX}")],
                code="payload_too_large",
                hint="shorten it, or send it by email or sms only with `channels`",
            )


def _weight(request: Request) -> int:
    content = request.content
    return len(content.title) + len(content.body) + sum(len(k) + len(v) + 4 for k, v in content.data.items())
