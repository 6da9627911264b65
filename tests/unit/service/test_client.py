"""The command line's side of the HTTP interface, against a server that refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bellbuoy.service.cli.client import PATIENCE_S_MAX, ApiError, Client


class Refusing(HTTPServer):
    """Says to each request that it may be repeated when nobody at a terminal waits any more."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.asked: list[str] = []


class Refusal(BaseHTTPRequestHandler):
    server: Refusing

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.command)
        body = b'{"code": "read_only", "detail": "nothing is taken", "hint": "GET /v1/modes says why"}'
        self.send_response(503)
        self.send_header("Retry-After", str(int(PATIENCE_S_MAX) + 1))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def test_whoever_makes_a_change_by_hand_is_told_soon_what_stands_against_it(refusing: Refusing) -> None:
    client = Client(f"http://127.0.0.1:{refusing.server_port}", "key")
    changes: list[Callable[[], object]] = [
        lambda: client.put("/v1/flags/f", {"enabled": True}),
        lambda: client.delete("/v1/keys/k"),
        lambda: client.post("/v1/breach/lift"),
    ]
    for change in changes:
        with pytest.raises(ApiError, match="nothing is taken") as error:
            change()
        assert (error.value.code, error.value.hint) == ("read_only", "GET /v1/modes says why")
    assert refusing.asked == ["PUT", "DELETE", "POST"]
