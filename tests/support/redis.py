"""A real Redis to test with: a server of our own on loopback, its data in a folder of the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from bellbuoy.service.drills import servers
from tests.support.missing import required


class RedisServer(servers.RedisServer):
    """The product's own server, with what only tests do to it."""

    def start(self) -> RedisServer:
        with required():
            super().start()
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5.0)

    def refuse_writes(self, refusing: bool) -> None:
        """Have no room for anything more."""
        with self.client() as client:
            client.config_set("maxmemory", "1" if refusing else "0")

    def lose_everything(self) -> None:
        """Forget all that it held, as one does that is restored from nothing."""
        with self.client() as client:
            client.flushall()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's server; what a test kills or freezes it starts or thaws again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.kill()
