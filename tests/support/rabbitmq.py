"""A real RabbitMQ to test with: a node of our own on loopback, booted once a session, a virtual host a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bellbuoy.service.drills import servers
from bellbuoy.service.drills.node import free_port
from bellbuoy.service.drills.servers import node_name, start_epmd
from tests.support.missing import required

__all__ = ["RabbitCluster", "RabbitServer", "amqp_url", "free_port", "rabbitmq"]


class RabbitServer(servers.RabbitServer):
    """The product's own server, with what only tests do to it."""

    def start(self) -> RabbitServer:
        with required():
            super().start()
        return self

    def refuse_writes(self, refusing: bool) -> None:
        """Raise, or take back, the alarm of a full disk: the broker reads from no connection that publishes."""
        self.control("set_disk_free_limit", "100000GB" if refusing else "50MB")


class RabbitCluster:
    """Three nodes that are one broker."""

    def __init__(self, folder: Path) -> None:
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        names = [node_name() for _ in range(3)]
        self.nodes = [
            RabbitServer(folder / f"node-{n}", node=name, members=names, epmd_port=self._epmd_port)
            for n, name in enumerate(names)
        ]

    def start(self) -> RabbitCluster:
        """Boot all at once and wait until they know each other."""
        self._epmd = start_epmd(self._epmd_port)
        with ThreadPoolExecutor() as pool:
            list(pool.map(RabbitServer.start, self.nodes))
        self.nodes[0].control("await_online_nodes", str(len(self.nodes)), "--timeout", "60")
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(timeout=10)

    def uri(self, vhost: str) -> str:
        """The URL that names every node."""
        return f"amqp://guest:guest@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/{vhost}"

    def leader_of(self, queue: str, vhost: str) -> RabbitServer:
        """The node that leads a quorum queue."""
        for node in self.nodes:
            if node.running:
                lines = node.control("list_queues", "-p", vhost, "name", "leader", "--no-table-headers").splitlines()
                leaders = dict(line.split("\t") for line in lines)
                return next(one for one in self.nodes if one.node == leaders[queue])
        raise AssertionError("no node runs")


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """The session's node."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def amqp_url(rabbitmq: RabbitServer) -> str:
    """A virtual host of the test's own."""
    return rabbitmq.uri(rabbitmq.make_vhost())
