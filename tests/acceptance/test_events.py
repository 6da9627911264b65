"""`GET /v1/events`: the health first, then what happens, to as many as are let in as long as their key holds."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import KEY, Server, to_email, wait_for

pytestmark = pytest.mark.acceptance


class Reader:
    """Reads a stream of server-sent events as a browser does."""

    def __init__(self, server: Server, key: str = KEY) -> None:
        host = server.url.removeprefix("http://")
        self.connection = http.client.HTTPConnection(host, timeout=20)
        self.connection.request("GET", "/v1/events", headers={"Authorization": f"Bearer {key}"})
        self.answer = self.connection.getresponse()

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name = ""
        while line := self.answer.readline():
            field, _, value = line.decode().partition(": ")
            if field == "event":
                name = value.strip()
            elif field == "data":
                yield name, json.loads(value)

    def until(self, wanted: str) -> dict[str, Any]:
        return next(data for name, data in self.events() if name == wanted)


@contextlib.contextmanager
def reading(server: Server, key: str = KEY) -> Iterator[Reader]:
    reader = Reader(server, key)
    try:
        yield reader
    finally:
        reader.connection.close()


def test_the_health_comes_first_and_then_what_happens(server: Server) -> None:
    with reading(server) as reader:
        assert reader.answer.status == 200
        assert reader.answer.getheader("content-type") == "text/event-stream"
        name, health = next(reader.events())
        assert (name, health["status"]) == ("health", "healthy")
        server.call("POST", "/v1/breakers/smtp", {"action": "isolate"})
        try:
            assert reader.until("circuit_breaker_isolated")["breaker"] == "smtp"
            held = server.send(to_email(1))
            assert reader.until("health")["dependencies"]["smtp"]["breaker"] == "isolated"
        finally:
            server.call("POST", "/v1/breakers/smtp", {"action": "close"})
        server.wait_status(held, "delivered")


def test_a_revoked_key_hears_no_more(server: Server) -> None:
    made = server.call("POST", "/v1/keys", {"name": "watcher", "scopes": ["read"]}).json()
    with reading(server, made["key"]) as reader:
        reader.until("health")
        assert server.call("DELETE", f"/v1/keys/{made['id']}").status == 200
        assert "key_revoked" not in [name for name, _ in reader.events()], "and the stream ends"


def test_without_a_key_nobody_hears_anything(server: Server) -> None:
    with reading(server, "no-such-key-at-all-000000") as reader:
        assert reader.answer.status == 401


def test_only_so_many_may_watch_and_a_place_comes_free(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(reading(server)) for _ in range(50)]
        assert {one.answer.status for one in readers} == {200}
        with reading(server) as late:
            assert late.answer.status == 429
            assert late.answer.getheader("retry-after") is not None
        readers[0].connection.close()
        readers[0].answer.close()
        wait_for(lambda: _let_in(server), why="the place of who left is free")


def _let_in(server: Server) -> bool:
    with reading(server) as reader:
        return reader.answer.status == 200


def test_a_stream_ends_with_the_process(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, reading(server) as reader:
        reader.until("health")
        assert server.stop() == 0
        assert [name for name, _ in reader.events()][-1] == "service_stopping"
