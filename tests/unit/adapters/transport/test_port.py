"""The URLs that may carry credentials, and Retry-After."""

from __future__ import annotations

import pytest

from bellbuoy.adapters.transport import checked_url, retry_after_s
from bellbuoy.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "https://fcm.googleapis.com",
        "https://fcm.googleapis.com:8443/",
        "http://127.0.0.1:9000",
        "http://127.8.9.1",
        "http://[::1]:9000/base/",
        "http://localhost:1",
    ],
)
def test_https_anywhere_and_http_on_loopback_are_fit(url: str) -> None:
    assert checked_url(url, "providers.fcm.base_url") == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fcm.googleapis.com",
        "ftp://host",
        "http://example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "https://user:secret@host",
        "https://host?x=1",
        "https://host#x",
        "https://",
        "https://[::1",
        "https://host:port",
        "https://ho st",
        "https://host/\r\nx: y",
        "https://hööst",
    ],
)
def test_any_other_url_is_refused_with_the_setting_named(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked_url(url, "providers.fcm.base_url")
    assert "providers.fcm.base_url" in (caught.value.hint or "")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("-3", 0.0),
        ("0", 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("999999999", 86_400.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 15 Jan 99999 07:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, expected: float | None) -> None:
    # 1,800,000,000 is Fri, 15 Jan 2027 08:00:00 GMT.
    assert retry_after_s(value, 1_800_000_000.0) == expected
