"""Programs read the flags through OpenFeature's SDK, from a real service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from bellbuoy.openfeature import BellbuoyProvider
from tests.support.server import KEY, Server, wait_for

pytestmark = pytest.mark.acceptance


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    yield
    api.shutdown()
    api.clear_providers()
    assert not [thread for thread in threading.enumerate() if thread.name == "bellbuoy-flags"]


def client_of(url: str, *, key: str = KEY) -> OpenFeatureClient:
    api.set_provider(BellbuoyProvider(url, key=key, refresh_s=0.1, timeout_s=2.0))
    return api.get_client()


def is_(client: OpenFeatureClient, status: ProviderStatus) -> None:
    wait_for(lambda: client.get_provider_status() is status, why=f"{status}")


def test_a_program_sees_a_flag_and_its_change(server: Server) -> None:
    changed: list[EventDetails] = []
    client = client_of(server.url)
    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, changed.append)
    is_(client, ProviderStatus.READY)
    assert client.get_boolean_details("new-checkout", True).error_code is ErrorCode.FLAG_NOT_FOUND
    assert client.get_boolean_value("new-checkout", True) is True, "the caller's default"
    assert server.call("PUT", "/v1/flags/new-checkout", {"enabled": True}).status == 200
    wait_for(lambda: client.get_boolean_value("new-checkout", False), why="on")
    found = client.get_boolean_details("new-checkout", False)
    assert (found.value, found.variant, found.reason, found.error_code) == (True, "on", Reason.CACHED, None)
    assert [name for event in changed for name in event.flags_changed or []] == ["new-checkout"]


def test_another_type_than_a_boolean_is_a_mismatch(server: Server) -> None:
    client = client_of(server.url)
    is_(client, ProviderStatus.READY)
    asked: list[Any] = [
        client.get_string_details("email_fallback", "x"),
        client.get_integer_details("email_fallback", 1),
        client.get_float_details("email_fallback", 1.0),
        client.get_object_details("email_fallback", {}),
    ]
    assert [one.error_code for one in asked] == [ErrorCode.TYPE_MISMATCH] * 4


def test_it_is_stale_while_the_service_is_away_and_goes_by_what_it_knew(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Server(tmp_path / "data", arguments=("serve", "--sandbox", "--port", str(port))) as server:
        server.call("PUT", "/v1/flags/mine", {"enabled": True})
        client = client_of(server.url)
        is_(client, ProviderStatus.READY)
        server.kill()
        is_(client, ProviderStatus.STALE)
        found = client.get_boolean_details("mine", False)
        assert (found.value, found.reason) == (True, Reason.STALE)
        server.start()
        is_(client, ProviderStatus.READY)


def test_it_is_in_error_until_it_has_read_them(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = client_of(f"http://127.0.0.1:{port}")
    is_(client, ProviderStatus.ERROR)
    found = client.get_boolean_details("email_fallback", True)
    assert (found.value, found.reason) == (True, Reason.ERROR)
    with Server(tmp_path / "data", arguments=("serve", "--sandbox", "--port", str(port))):
        is_(client, ProviderStatus.READY)
        assert client.get_boolean_value("email_fallback", True) is False


def test_a_key_that_is_refused_is_an_error(server: Server) -> None:
    client = client_of(server.url, key="not-a-key-of-this-service")
    is_(client, ProviderStatus.ERROR)


@pytest.mark.parametrize("url", ["http://example.com", "ftp://127.0.0.1", "127.0.0.1:8470"])
def test_a_key_is_not_sent_where_others_listen_in(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        BellbuoyProvider(url, key="k")
