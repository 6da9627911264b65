"""Whom a notification is for, where they can be reached, and what they allow."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Channel = Literal["push", "email", "sms"]
Platform = Literal["android", "ios", "web"]
PushProvider = Literal["fcm", "apns"]

CHANNELS: tuple[Channel, ...] = ("push", "email", "sms")

# Printable, without the NUL and control characters that no store, header or log should have to carry.
Identifier = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+(?![\s\S])")]
# RFC 5321's lengths; the characters are those that need no quoting, so an address can never end a header.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
Email = Annotated[
    str,
    Meta(
        max_length=254,
        pattern=rf"^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+(?![\s\S])",
    ),
]
# E.164: a plus sign, then up to fifteen digits.
Phone = Annotated[str, Meta(pattern=r"^\+[1-9][0-9]{6,14}(?![\s\S])")]
Token = Annotated[str, Meta(min_length=1, max_length=4096)]
# A BCP 47 tag such as `en` or `pt-BR`.
Locale = Annotated[str, Meta(pattern=r"^[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*(?![\s\S])", max_length=35)]
ClockTime = Annotated[str, Meta(pattern=r"^(?:[01][0-9]|2[0-3]):[0-5][0-9](?![\s\S])")]

_APNS_TOKEN = re.compile(r"[0-9a-fA-F]{16,400}")
_FCM_TOKEN = re.compile(r"[A-Za-z0-9_:.%=-]+")

DEVICES_MAX = 100
"""Devices one user may have; the next is refused, so that one user cannot grow a record without bound."""


class Endpoint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A push token and who carries it."""

    provider: PushProvider
    token: Token


class DeviceAddress(Struct, frozen=True, forbid_unknown_fields=True):
    """A device named in the request itself, without a user."""

    platform: Platform
    provider: PushProvider
    token: Token


class Device(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of a user's devices. `alternate` is a second provider that reaches the same device when the first is down."""

    device_id: Identifier
    platform: Platform
    provider: PushProvider
    token: Token
    alternate: Endpoint | None = None


class QuietHours(Struct, frozen=True, forbid_unknown_fields=True):
    """From `start` to `end`, both `HH:MM` in the recipient's time zone; over midnight when `end` is not later."""

    start: ClockTime
    end: ClockTime


class Preferences(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the recipient allows. `channels` None: push, then email, then sms, as far as there is an endpoint.

    `categories` maps a category to whether it is wanted; one that is not named is wanted.
    """

    channels: Annotated[tuple[Channel, ...], Meta(max_length=3)] | None = None
    categories: Annotated[dict[Identifier, bool], Meta(max_length=200)] = field(default_factory=dict)
    quiet_hours: QuietHours | None = None


class RegisteredDevice(Struct, frozen=True, omit_defaults=True):
    """A device and its history in the registry.

    `registered_at` is the epoch second its token was last put. `invalidated_at` and `invalid_because` are the
    tombstone of a token that its provider called gone: it is not used, and putting the device again, or restoring
    the tombstone, takes it back.
    """

    device: Device
    registered_at: float
    invalidated_at: float | None = None
    invalid_because: str | None = None


class User(Struct, frozen=True, omit_defaults=True):
    """A recipient that Bellbuoy knows: its addresses, preferences and devices."""

    user_id: str
    email: Email | None = None
    phone: Phone | None = None
    locale: Locale | None = None
    timezone: str = "UTC"
    preferences: Preferences = field(default_factory=Preferences)
    devices: tuple[RegisteredDevice, ...] = ()


class Recipient(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Exactly one of: a known user, a device, an email address, a phone number."""

    user_id: Identifier | None = None
    device: DeviceAddress | None = None
    email: Email | None = None
    phone: Phone | None = None


def token_problem(platform: Platform, provider: PushProvider, token: str) -> str | None:
    """Say what is wrong with a push token, None when nothing is.

    An APNs token is hexadecimal and becomes a path segment of the request, so nothing else may pass.
    """
    if provider == "apns":
        if platform != "ios":
            return "provider apns reaches only platform ios"
        if not _APNS_TOKEN.fullmatch(token):
            return "an APNs device token is 16 to 400 hexadecimal digits"
    elif not _FCM_TOKEN.fullmatch(token):
        return "an FCM registration token has only letters, digits and _ : . % = -"
    return None


def masked(endpoint: str) -> str:
    """An endpoint as it may be shown: enough to recognise, too little to use.

    Returns:
        `a***@example.com` for an address, `+15***67` for a number, `3ddc1b…3d77` for a token.
    """
    if "@" in endpoint:
        local, _, domain = endpoint.rpartition("@")
        return f"{local[:1]}***@{domain}"
    if endpoint.startswith("+"):
        return f"{endpoint[:3]}***{endpoint[-2:]}"
    return f"{endpoint[:6]}…{endpoint[-4:]}" if len(endpoint) > 16 else f"{endpoint[:2]}…"
