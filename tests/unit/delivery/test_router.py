from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.delivery.router import enter_step, quiet_until, route
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Request
from bellbuoy.model.recipient import Device, QuietHours, RegisteredDevice, User
from bellbuoy.model.routes import endpoints

NOW = 1_800_000_000.0


def record(**fields: Any) -> Record:
    document = {"recipient": {"user_id": "u"}, "content": {"title": "t"}, **fields}
    return Record("n", "t", msgspec.convert(document, Request), NOW, NOW + 3_600)


def user(*, devices: tuple[Device, ...] = (), **fields: Any) -> User:
    known = msgspec.convert({"user_id": "u", **fields}, User)
    return msgspec.structs.replace(known, devices=tuple(RegisteredDevice(d, NOW) for d in devices))


PHONE = Device("p", "android", "fcm", "token")
EVERYWHERE: dict[str, Any] = {"email": "a@example.com", "phone": "+15551234567"}


@pytest.mark.parametrize(
    ("request_fields", "preferences", "chain"),
    [
        ({}, {}, ("push", "email", "sms")),
        ({}, {"channels": ["sms", "push"]}, ("sms", "push")),
        ({"channels": ["email", "push"]}, {}, ("email", "push")),
        ({"channels": ["email", "push"]}, {"channels": ["push"]}, ("push",)),
        ({}, {"categories": {"news": False}}, ("push", "email", "sms")),
        ({"content": {"data": {"a": "b"}}}, {}, ("push",)),
    ],
    ids=str,
)
def test_the_chain(request_fields: dict[str, Any], preferences: dict[str, Any], chain: tuple[str, ...]) -> None:
    one = record(**request_fields)
    route(one, user(devices=(PHONE,), preferences=preferences, **EVERYWHERE), NOW)
    assert one.chain == chain


@pytest.mark.parametrize(
    ("request_fields", "known", "why"),
    [
        ({}, None, "unknown"),
        ({}, user(), "no usable endpoint"),
        ({"channels": ["sms"]}, user(preferences={"channels": ["push"]}, **EVERYWHERE), "sms not among the channels"),
        ({"channels": ["sms"]}, user(email="a@example.com"), "no usable endpoint for sms"),
        ({"recipient": {"email": "a@example.com"}, "channels": ["push"]}, None, "push not among"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_no_route_says_why(request_fields: dict[str, Any], known: User | None, why: str) -> None:
    one = record(**request_fields)
    route(one, known, NOW)
    assert (one.status, one.code) == ("failed", "no_route")
    assert why in one.timeline[-1].detail


def test_an_invalidated_token_is_not_used() -> None:
    known = user(devices=(PHONE, Device("q", "ios", "apns", "ab" * 32)))
    dead = msgspec.structs.replace(known.devices[0], invalidated_at=NOW)
    known = msgspec.structs.replace(known, devices=(dead, known.devices[1]))
    assert [e[0] for e in endpoints(record().request, known, "push")] == ["apns"]


def test_working_a_step_out_twice_gives_the_same_deliveries() -> None:
    ids = []
    for _ in range(2):
        one = record()
        route(one, user(devices=(PHONE,)), NOW)
        assert enter_step(one, user(devices=(PHONE,)), NOW)
        ids.append(one.deliveries[0].id)
    assert ids[0] == ids[1]


def at(zone: str, *when: int) -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("zone", "when", "end"),
    [
        ("UTC", (2026, 6, 1, 23, 30), (2026, 6, 2, 7, 0)),
        ("UTC", (2026, 6, 2, 6, 59), (2026, 6, 2, 7, 0)),
        ("UTC", (2026, 6, 2, 7, 0), None),
        ("UTC", (2026, 6, 1, 21, 59), None),
        ("UTC", (2026, 6, 1, 22, 0), (2026, 6, 2, 7, 0)),
        ("Asia/Kolkata", (2026, 6, 1, 22, 0), (2026, 6, 2, 7, 0)),
        ("Europe/Berlin", (2026, 3, 28, 23, 0), (2026, 3, 29, 7, 0)),  # An hour is missing in this night.
        ("Europe/Berlin", (2026, 10, 24, 23, 0), (2026, 10, 25, 7, 0)),  # And one is there twice in this.
        ("America/Sao_Paulo", (2026, 12, 31, 23, 59), (2027, 1, 1, 7, 0)),
    ],
    ids=str,
)
def test_quiet_hours_over_midnight(zone: str, when: tuple[int, ...], end: tuple[int, ...] | None) -> None:
    found = quiet_until(QuietHours("22:00", "07:00"), zone, at(zone, *when))
    assert found == (None if end is None else at(zone, *end))


def test_quiet_hours_within_a_day_and_odd_ones() -> None:
    nap = QuietHours("13:00", "14:30")
    assert quiet_until(nap, "UTC", at("UTC", 2026, 6, 1, 13, 30)) == at("UTC", 2026, 6, 1, 14, 30)
    assert quiet_until(nap, "UTC", at("UTC", 2026, 6, 1, 14, 30)) is None
    assert quiet_until(QuietHours("08:00", "08:00"), "UTC", NOW) is None
    assert quiet_until(nap, "No/Where", at("UTC", 2026, 6, 1, 13, 30)) is not None


@given(
    minute=st.integers(0, 60 * 24 * 365),
    start=st.integers(0, 1439),
    end=st.integers(0, 1439),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_quiet_hours_end_soon_and_are_over_then(minute: int, start: int, end: int, zone: str) -> None:
    quiet = QuietHours(f"{start // 60:02}:{start % 60:02}", f"{end // 60:02}:{end % 60:02}")
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + minute * 60
    wake = quiet_until(quiet, zone, now)
    if wake is not None:
        assert now < wake <= now + 25 * 3_600 + 60
        assert quiet_until(quiet, zone, wake) is None
