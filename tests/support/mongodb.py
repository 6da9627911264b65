"""A MongoDB to test with: the real one that BELLBUOY_TEST_MONGODB_URI names, else a stand-in of our own on loopback.

The stand-in, SecantusDB, speaks MongoDB's protocol as a replica set of one over a real storage engine. What it cannot
show is elections, replication lag and MongoDB's own speed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from tests.support.server import wait_for

REAL = os.environ.get("BELLBUOY_TEST_MONGODB_URI")
START_S_MAX = 20.0


class MongoServer:
    """The stand-in in a process of its own, on a port of its own, with its storage in a folder of the test's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MongoServer:
        """Start it, on what an earlier run has left, and wait until it answers."""
        program = Path(sys.executable).with_name("secantusd-py")
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--storage-path", str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # Its commitTransaction does not look at `j`, as MongoDB's does; this makes it write every journal.
                [program, *arguments, "--enable-test-commands", "--sync-on-commit"],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        wait_for(self._answers, within_s=START_S_MAX, why=f"the stand-in for MongoDB: {self._folder / 'log'}")
        return self

    def uri(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

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
            with pymongo.MongoClient[dict[str, Any]](self.uri("admin"), serverSelectionTimeoutMS=200) as client:
                return bool(client.admin.command("ping")["ok"])
        except pymongo.errors.PyMongoError:
            return False


@pytest.fixture(scope="session")
def mongodb_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server that the tests of this process share, without a database."""
    if REAL is not None:
        yield REAL
        return
    server = MongoServer(tmp_path_factory.mktemp("mongodb"))
    try:
        server.start()
        yield server.uri("")
    finally:
        server.kill()


@pytest.fixture
def mongodb_url(mongodb_base: str) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"bellbuoy_{uuid.uuid4().hex[:16]}"
    yield with_database(mongodb_base, name)
    with pymongo.MongoClient[dict[str, Any]](mongodb_base) as client:
        client.drop_database(name)


def with_database(url: str, name: str) -> str:
    """The URL with another database; the credentials keep the one that they are checked against."""
    scheme, _, rest = url.partition("://")
    authority, _, behind = rest.partition("/")
    before, _, options = behind.partition("?")
    source = [f"authSource={before or 'admin'}"] if "@" in authority and "authSource=" not in options else []
    return f"{scheme}://{authority}/{name}" + ("?" + "&".join([*filter(None, [options]), *source])).rstrip("?")


def database_of(client: pymongo.MongoClient[dict[str, Any]]) -> Any:
    """The database that a client's URL names."""
    return client.get_default_database()
