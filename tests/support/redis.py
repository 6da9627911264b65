"""A real Redis to test with: a server of our own on loopback, its data in a folder of the test's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.rabbitmq import free_port
from tests.support.server import wait_for

START_S_MAX = 20.0


class RedisServer:
    """One server that writes everything to its append-only file at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it, on what an earlier run has left, and wait until it answers."""
        found = shutil.which("redis-server")
        if found is None:
            if os.environ.get("CI") == "true":
                pytest.fail("redis-server is not installed, and in CI a missing server is a failure")
            pytest.skip("redis-server is not installed")
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder), "save": ""}
        settings |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([found, *arguments], stdout=log, stderr=log, cwd=self._folder)
        wait_for(self._answers, within_s=START_S_MAX, why=f"redis-server: {self._folder / 'log'}")
        return self

    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

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

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's server; what a test kills or freezes it starts or thaws again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.kill()
